package meta

import "slices"

// Version is the newest version of log entries and snapshots that this package reads and writes.
// Versions 2 and 3 have not been released yet.
const Version = 3

// This is this build.
var This = Build{Version: Version, Command: needs(commandSince), Ring: needs(ringSince), Files: 2}

// since says with which version something came: a command, or a member of one or of the ring. Everything that is in
// neither table is of version 1, so every new command and every new member gets a line, with isSet saying that an entry
// or a ring has it. A version that has been released gets no more lines.
type since[T any] struct {
	version int
	isSet   func(*T) bool
}

var commandSince = []since[Command]{
	{2, func(c *Command) bool { return c.Adopt != nil && c.Adopt.Admit }},
	{2, func(c *Command) bool { return c.AddJoinToken != nil }},
	{2, func(c *Command) bool { return c.UseJoinToken != nil }},
	{2, func(c *Command) bool { return c.EndJoinTokens != nil }},
	{2, func(c *Command) bool { return c.Add != nil && c.Add.Compromised }},
	{2, func(c *Command) bool { return c.Add != nil && c.Add.Key.Suite != "" }},
	{2, func(c *Command) bool { return c.Adopt != nil && c.Adopt.Key.Suite != "" }},
	{3, func(c *Command) bool { return c.Nonvoter != nil }},
}

var ringSince = []since[Ring]{
	{2, func(r *Ring) bool { return len(r.JoinTokens) > 0 }},
	{2, anyKey(func(k *Key) bool { return k.Compromised })},
	{2, anyKey(func(k *Key) bool { return k.Suite != "" })},
	{3, func(r *Ring) bool { return len(r.Nonvoters) > 0 }},
}

// anyKey makes a line of ringSince about a member of a key. The ring may not be checked yet, so a key may be nil.
func anyKey(isSet func(*Key) bool) func(*Ring) bool {
	return func(r *Ring) bool {
		return slices.ContainsFunc(r.Keys, func(k *Key) bool { return k != nil && isSet(k) })
	}
}

// needs returns the lowest version that has all that is set.
func needs[T any](table []since[T]) func(*T) int {
	return func(v *T) int {
		version := 1
		for _, s := range table {
			if s.version > version && s.isSet(v) {
				version = s.version
			}
		}
		return version
	}
}
