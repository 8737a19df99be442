package port

import "github.com/hashicorp/raft"

// Decoders decode what servers ask and answer each other, by its kind.
var Decoders = map[string]func([]byte) error{
	"hello":   func(b []byte) error { _, err := helloType.DecodeKnown(b); return err },
	"place":   func(b []byte) error { _, err := movedHelloType.Decode(b); return err },
	"joining": func(b []byte) error { _, err := joinRequestType.Decode(b); return err },
	"joined":  func(b []byte) error { _, err := joinAnswerType.DecodeKnown(b); return err },
	"proving": func(b []byte) error { _, err := proofRequestType.Decode(b); return err },
	"proof":   func(b []byte) error { _, err := proofAnswerType.DecodeKnown(b); return err },
}

// Introduce writes into a store of raft's that this server was added by those servers, when raft's log was committed up to index, and
// has not caught up since.
func Introduce(store raft.StableStore, index uint64, servers ...string) error {
	p := &Port{log: store.(raft.LogStore)}
	return p.storeIntroduction(&introduction{index, servers})
}

// Introduced reports whether a store says so.
func Introduced(store raft.StableStore) bool {
	in, err := (&Port{log: store.(raft.LogStore)}).storedIntroduction()
	return err != nil || in != nil
}
