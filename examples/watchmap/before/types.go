package before

import "example.com/keyring/examples/watchmap/store"

// What is the same now.
type (
	Watch   = store.Watch
	Entry   = store.Entry
	Command = store.Command
	Head    = store.Head
)

// Errors of a Store.
var (
	ErrNoKey   = store.ErrNoKey
	ErrNoWatch = store.ErrNoWatch
)
