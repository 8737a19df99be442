package raftwire

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

const (
	// maxTermStep is how far another server's term may be beyond this one's. Terms grow by one with an
	// election; one that comes near the largest number could never be followed by another.
	maxTermStep = 1 << 20

	// maxFirstTerm bounds the term that a server takes which has none yet.
	maxFirstTerm = 1 << 48

	// MaxIndex is far beyond the index of any entry.
	MaxIndex = 1 << 62

	// maxConfiguration is the most bytes of a raft configuration, which is some thousand servers.
	maxConfiguration = 256 << 10

	// maxText bounds a server's ID, and its address, in what raft sends.
	maxText = 1024
)

// ErrBadRequest is matched by what is wrong with a request of raft's.
var ErrBadRequest = errors.New("raft request refused")

func badRequest(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrBadRequest, fmt.Errorf(format, args...))
}

// View is what a server's raft knows, for requests of other servers to be checked against.
type View struct {
	Term   uint64
	Commit uint64                      // the entries up to this index are final
	TermAt func(uint64) (uint64, bool) // the term of the entry with that index, if it is in the log
}

// Check says what is wrong with a request. It does not look at the data of a snapshot.
func (v View) Check(command any) error {
	switch q := command.(type) {
	case *raft.AppendEntriesRequest:
		//lint:ignore SA1019 raft reads it of servers that set it
		return errors.Join(v.checkFrom(q.RPCHeader, q.Leader, q.Term), v.checkEntries(q))
	case *raft.RequestVoteRequest:
		//lint:ignore SA1019 raft reads it of servers that set it
		return v.checkFrom(q.RPCHeader, q.Candidate, q.Term)
	case *raft.RequestPreVoteRequest:
		return v.checkFrom(q.RPCHeader, nil, q.Term)
	case *raft.TimeoutNowRequest:
		return v.checkFrom(q.RPCHeader, nil, 0)
	case *raft.InstallSnapshotRequest:
		if q.Term < v.Term { // raft would not take it either, once it is read
			return badRequest("a snapshot in term %d, and the term here is %d", q.Term, v.Term)
		}
		return errors.Join(v.checkFrom(q.RPCHeader, q.Leader, q.Term), checkSnapshot(q))
	}
	return badRequest("%T", command)
}

// checkFrom checks the length of what a request says of its sender, and its term.
func (v View) checkFrom(h raft.RPCHeader, addr []byte, term uint64) error {
	if len(h.ID) > maxText || len(h.Addr) > maxText || len(addr) > maxText {
		return badRequest("from an ID or address of more than %d bytes", maxText)
	}
	return v.checkTerm(term)
}

func (v View) checkTerm(term uint64) error {
	if most := v.Term + maxTermStep; v.Term > 0 && term > most || v.Term == 0 && term > maxFirstTerm {
		return badRequest("term %d, and the term here is %d", term, v.Term)
	}
	return nil
}

// checkEntries requires that the entries follow one another, are of this term or earlier ones, are of the kinds
// that raft has, and take the place of none that is final.
func (v View) checkEntries(q *raft.AppendEntriesRequest) error {
	if q.PrevLogEntry > MaxIndex || q.PrevLogTerm > q.Term {
		return badRequest("entries after %d of term %d in term %d", q.PrevLogEntry, q.PrevLogTerm, q.Term)
	}
	last := q.PrevLogTerm
	for i, e := range q.Entries {
		if e == nil {
			return badRequest("an entry that is none")
		}
		if want := q.PrevLogEntry + 1 + uint64(i); e.Index != want {
			return badRequest("entry %d where %d follows", e.Index, want)
		}
		if e.Term < max(last, 1) || e.Term > q.Term {
			return badRequest("entry %d of term %d after one of term %d in term %d", e.Index, e.Term, last, q.Term)
		}
		last = e.Term
		if term, ok := v.final(e.Index); ok && term != e.Term {
			return badRequest("entry %d of term %d, which is final here with term %d", e.Index, e.Term, term)
		}
		if err := checkEntry(e); err != nil {
			return fmt.Errorf("entry %d: %w", e.Index, err)
		}
	}
	return nil
}

// final returns the term of an entry that is committed, if it is still in the log.
func (v View) final(index uint64) (uint64, bool) {
	if index > v.Commit {
		return 0, false
	}
	return v.TermAt(index)
}

func checkEntry(e *raft.Log) error {
	switch e.Type {
	case raft.LogCommand, raft.LogNoop, raft.LogBarrier:
		return nil
	case raft.LogConfiguration:
		_, err := DecodeConfiguration(e.Data)
		return err
	}
	return badRequest("of type %d", e.Type) // also those with which raft changed its members before 1.0
}

func checkSnapshot(q *raft.InstallSnapshotRequest) error {
	switch {
	case q.SnapshotVersion != raft.SnapshotVersionMax:
		return badRequest("a snapshot of version %d", q.SnapshotVersion)
	case q.LastLogIndex == 0 || q.LastLogIndex > MaxIndex || q.ConfigurationIndex > q.LastLogIndex:
		return badRequest("a snapshot of entry %d with the configuration of %d", q.LastLogIndex, q.ConfigurationIndex)
	case q.LastLogTerm == 0 || q.LastLogTerm > q.Term:
		return badRequest("a snapshot of term %d in term %d", q.LastLogTerm, q.Term)
	case q.Size < 0:
		return badRequest("a snapshot of %d bytes", q.Size)
	}
	_, err := DecodeConfiguration(q.Configuration)
	return err
}

// DecodeConfiguration decodes a raft configuration that passes CheckConfiguration. Raft's own decoder panics
// when the bytes are no configuration; it keeps no state that the panic could leave damaged.
func DecodeConfiguration(b []byte) (c raft.Configuration, err error) {
	if len(b) > maxConfiguration {
		return c, badRequest("a configuration of %d bytes, at most %d", len(b), maxConfiguration)
	}
	defer func() {
		if recover() != nil {
			c, err = raft.Configuration{}, badRequest("a configuration that does not decode")
		}
	}()
	c = raft.DecodeConfiguration(b)
	if err := CheckConfiguration(c); err != nil {
		return c, badRequest("%w", err)
	}
	return c, nil
}

// CheckConfiguration says why raft could not work with a configuration, or returns nil: it must have a voter,
// and no server twice.
func CheckConfiguration(c raft.Configuration) error {
	ids, addrs, voters := map[raft.ServerID]bool{}, map[raft.ServerAddress]bool{}, 0
	for _, s := range c.Servers {
		if s.ID == "" || s.Address == "" || len(s.ID) > maxText || len(s.Address) > maxText {
			return fmt.Errorf("a configuration with an ID of %d and an address of %d bytes", len(s.ID), len(s.Address))
		}
		if s.Suffrage < raft.Voter || s.Suffrage > raft.Staging || ids[s.ID] || addrs[s.Address] {
			return fmt.Errorf("a configuration with a server twice, or of suffrage %d", s.Suffrage)
		}
		ids[s.ID], addrs[s.Address] = true, true
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	if voters == 0 {
		return errors.New("a configuration without a voter")
	}
	return nil
}
