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

// Map is a set of encrypted records by name. It is a raft.FSM, or a part of one, and a keyring.SealedData.
// Make it with New. Its methods are safe for concurrent use. Only raft, or the Apply and Restore of the
// host's FSM, may call Apply, SetPlain, Delete, Restore, RestoreFrom and RestorePlain, because these change
// only this server's Map.
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

// New returns an empty Map. keys is this server's keyring FSM, to which the same raft applies its log.
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

// changeLocked changes the state under the lock. plain says that there was nothing in the clear before, and
// is now.
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

// Apply executes a command that a Map has proposed. It uses the Index and the Data of the entry, and changes
// neither. Return its result to the Map that proposed the command: an error, or a value for Put or Replace.
// If the entry is no command, or FSM.Admit or a version check rejects it, Apply returns an error and changes
// nothing but the index.
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

// SetPlain stores a record in the clear, replacing the record with its name: all of its Parts are plaintexts.
// The keyring encrypts it once it has a key. It is only for old commands in the log of a host that had no
// keyring, because the plaintexts are in raft's files.
//
// Its Version must be the same on a server that applies the command and on one that restores a snapshot. A
// host whose old snapshots have no version leaves it zero, which counts as 1. If the record is out of bounds,
// such as one with an empty name, SetPlain returns an error and changes nothing. While raft replays its log,
// nobody reads the results of Apply: see docs/records.md for what a host does about that.
func (m *Map) SetPlain(r Record) error {
	n, err := plainRecord(r)
	if err == nil {
		m.change(func() any { m.now.set(n); return nil })
	}
	return err
}

// Delete removes a record, if there is one. It is only for old commands of a host that had no keyring; new
// ones use Write.Delete.
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

// View returns all records as they are now. It is cheap, and Apply does not wait for its readers.
func (m *Map) View() View {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.now.View
	v.byName = v.byName.Copy()
	return v
}

// Get returns the record with that name, if there is one. It reads this server's Map, which may lag behind
// the leader.
func (m *Map) Get(name string) (Record, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.now.Get(name)
}

// Changed returns a channel that is closed at the next change. Get the channel, read a View, then wait on the
// channel. A record has changed if its Version has, and was deleted if it is absent. The channel may also be
// closed by a command that was rejected.
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
