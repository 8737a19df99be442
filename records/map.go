package records

// Map as a part of a host's FSM: what raft, or the host's Apply and Restore, call.

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// Map is sealed records by name: a raft.FSM, or a part of one, and a keyring.SealedData. Make it with New. Its methods are
// safe for concurrent use. Only raft, or the Apply and Restore of the host's FSM, call Apply, SetPlain, Delete, Restore,
// RestoreFrom and RestorePlain: these change this server's Map alone.
//
// A Map is in memory. It is not for a host that sets NoSnapshotRestoreOnStart.
type Map struct {
	keys *keyring.FSM // for Admit

	mu      sync.RWMutex // guards below
	now     state
	changed chan struct{} // closed at the next change; nil if nobody waits

	linking   sync.Mutex    // guards below
	link      *link         // nil before Connect
	connected chan struct{} // closed by the first Connect
}

// New returns an empty Map. keys is the keyring's FSM of this server, the one that the same raft applies to.
func New(keys *keyring.FSM) *Map {
	return &Map{keys: keys, now: newState(), connected: make(chan struct{})}
}

// change changes the state, and tells those who wait. The keyring is told when there are records in the clear.
func (m *Map) change(do func() any) any {
	answer, plain := m.changeLocked(do)
	if plain {
		m.notify()
	}
	return answer
}

// changeLocked changes the state under the lock. plain says that there was nothing in the clear before, and is now.
func (m *Map) changeLocked(do func() any) (answer any, plain bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
	before := m.now.byKey[keyring.KeyID{}].parts
	answer = do()
	return answer, before == 0 && m.now.byKey[keyring.KeyID{}].parts > 0
}

// Apply executes a command that a Map has proposed. It uses the Index and the Data of the entry, and changes neither. Its
// answer is for the Map that proposed it: an error, or what Put or Replace go by. A command that is none, or that the fence
// or a version refuses, is an error and changes nothing, the index aside.
func (m *Map) Apply(l *raft.Log) any {
	if l.Type != raft.LogCommand {
		return nil
	}
	if l.Index == 0 { // a record's version would be none
		return errors.New("records: a log entry without an index")
	}
	c, err := decodeCommand(l.Data)
	return m.change(func() any {
		m.now.index = l.Index
		switch {
		case m.now.newer != nil: // what was not applied may have decided about this
			return m.now.newer
		case errors.As(err, new(newerError)):
			m.now.newer = fmt.Errorf("log entry %d: %w", l.Index, err)
			return m.now.newer
		case err != nil:
			return fmt.Errorf("log entry %d: %w", l.Index, err)
		case len(c.writes) > 0:
			if err := m.mayWrite(c.writes); err != nil {
				return err
			}
			m.write(l.Index, c.writes)
			return l.Index
		}
		return m.swap(c.swaps)
	})
}

// mayWrite says why writes are refused, all of them. It is the fence.
func (m *Map) mayWrite(writes []Write) error {
	seen := map[string]bool{}
	for _, w := range writes {
		if seen[w.Name] {
			return corrupt("a command with two writes of %q", w.Name)
		}
		seen[w.Name] = true
		if w.If != nil {
			if old, _ := m.now.Get(w.Name); old.Version != *w.If {
				return fmt.Errorf("record %q: %w: %d", w.Name, ErrVersion, old.Version)
			}
		}
		for i, p := range w.Parts {
			if err := m.keys.Admit(p); err != nil {
				return fmt.Errorf("record %q, part %d: %w", w.Name, i, err)
			}
		}
	}
	return nil
}

func (m *Map) write(index uint64, writes []Write) {
	for _, w := range writes {
		if w.Delete {
			m.now.remove(w.Name)
		} else {
			m.now.set(&Record{Name: w.Name, Version: index, Meta: w.Meta, Parts: w.Parts})
		}
	}
}

// swap makes the swaps whose old part is still there, and which the fence lets pass.
func (m *Map) swap(swaps []swap) (conflicts int) {
	for _, s := range swaps {
		old, ok := m.now.Get(s.name)
		if !ok || s.part >= len(old.Parts) || sha256.Sum256(old.Parts[s.part]) != s.old || m.keys.Admit(s.new) != nil {
			conflicts++
			continue
		}
		old.Parts = slices.Clone(old.Parts)
		old.Parts[s.part] = s.new
		old.plain &^= 1 << s.part
		if old.tooLong() {
			conflicts++
			continue
		}
		m.now.set(&old)
	}
	return conflicts
}

// SetPlain puts a record in the clear in the place of what has its name: all of its Parts are plaintexts. It is for the
// commands in the log of a host that had no keyring, and not for new ones, because what is in the clear is in raft's files. The
// keyring seals it once it has a key.
// Its Version has to be the same on a server that applies the command and on one that restores a snapshot: a host whose old
// snapshots have none leaves it zero, which counts as 1. SetPlain returns an error, and changes nothing, if the record is beyond the bounds, as with an
// empty name. While raft replays its log nobody reads what Apply returns: see docs/records.md for what a host does about that.
func (m *Map) SetPlain(r Record) error {
	n, err := plainRecord(r)
	if err == nil {
		m.change(func() any { m.now.set(n); return nil })
	}
	return err
}

// Delete takes a record out, if there is one. It is for the commands of a host that had no keyring: others have
// Write.Delete.
func (m *Map) Delete(name string) {
	m.change(func() any { m.now.remove(name); return nil })
}

// plainRecord returns a copy of a record whose parts are all in the clear.
func plainRecord(r Record) (*Record, error) {
	w := Write{Name: r.Name, Meta: slices.Clone(r.Meta)}
	for _, p := range r.Parts {
		w.Parts = append(w.Parts, slices.Clone(p))
	}
	return &Record{Name: w.Name, Version: max(1, r.Version), Meta: w.Meta, Parts: w.Parts, plain: 1<<len(w.Parts) - 1}, w.check()
}

// View returns all records as they are now. It is cheap, and Apply does not wait for those who read it.
func (m *Map) View() View {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.now.View
	v.byName = v.byName.Copy()
	return v
}

// Get returns the record of a name, if there is one: as this server has it, which may lag behind the leader.
func (m *Map) Get(name string) (Record, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.now.Get(name)
}

// Changed returns a channel that is closed at the next change. Take it, look at a View, then wait on it: a record has changed if
// its Version has, and was deleted if it is not there any more. The channel may be closed for a command that was refused.
func (m *Map) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changed == nil {
		m.changed = make(chan struct{})
	}
	return m.changed
}

// unknown is an error if the Map may lack something, because a newer build has written it.
func (m *Map) unknown() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.now.newer
}
