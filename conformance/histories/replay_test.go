package histories

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// checkReplays has each server's own snapshot and log applied again, and compares what comes of it: I7
// and I2. None of the servers runs. All had applied the log to the index settled.
func (l *lab) checkReplays(t *testing.T, settled uint64) {
	t.Helper()
	var all []*replay
	from, upTo := uint64(0), ^uint64(0)
	for _, h := range l.hosts {
		r, err := openReplay(filepath.Join(l.dir, h.id, "raft"))
		if err != nil {
			t.Errorf("I7: %s: %v", h.id, err)
			return
		}
		defer r.log.Close()
		last, err := r.log.LastIndex()
		if err != nil {
			t.Error(err)
		}
		from, upTo = max(from, r.at), min(upTo, last)
		all = append(all, r)
	}
	// What comes last a server may have proposed alone, while the others ended: it was never committed.
	for upTo > settled && !agree(t, all, upTo) {
		upTo--
	}
	if upTo < from || !agree(t, all, upTo) {
		t.Errorf("I7: the logs of the servers, from index %d, differ at %d; all had applied %d", from, upTo, settled)
		return
	}
	const stops = 50
	for stop := range uint64(stops) {
		index := upTo - (upTo-from)*(stops-1-stop)/stops
		var first []byte
		for i, r := range all {
			got, err := r.to(index)
			if err != nil {
				t.Errorf("I7: %s at index %d: %v", l.hosts[i].id, index, err)
				return
			}
			if i == 0 {
				first = got
			}
			if !bytes.Equal(first, got) {
				t.Errorf("I7: at index %d the keyring of %s is not that of %s:\n%s\n%s", index, l.hosts[i].id, l.hosts[0].id, got, first)
				return
			}
		}
		if err := checkSection(first); err != nil {
			t.Errorf("at index %d: %v", index, err)
		}
	}
	t.Logf("I7: the same on all servers from index %d to %d", from, upTo)
}

// agree reports whether the logs have the same up to an index: raft has it so if the terms are the same.
func agree(t *testing.T, all []*replay, index uint64) bool {
	t.Helper()
	terms := map[uint64]bool{}
	for _, r := range all {
		if r.at == index { // the snapshot has it
			continue
		}
		var entry raft.Log
		if err := r.log.GetLog(index, &entry); err != nil {
			t.Errorf("I7: index %d: %v", index, err)
		}
		terms[entry.Term] = true
	}
	return len(terms) <= 1
}

// checkSection looks into the snapshot of a keyring.
func checkSection(section []byte) error {
	const head = 16 + 8 + 32 // the magic, the length, the SHA-256
	ring, err := meta.Decode(section[head:])
	if err != nil {
		return err
	}
	active := 0
	for _, k := range ring.Keys {
		if k.State == meta.StateActive {
			active++
		}
	}
	if active > 1 {
		return fmt.Errorf("I2: %d keys are active", active)
	}
	return nil
}

// replay is what a server's raft has on disk, and a keyring that it is applied to.
type replay struct {
	log  *raftboltdb.BoltStore
	at   uint64 // the index that is applied
	keys *keyring.FSM
	fsm  raft.FSM
}

// openReplay begins with the newest snapshot, if there is one.
func openReplay(dir string) (*replay, error) {
	log, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft.db"))
	if err != nil {
		return nil, err
	}
	r := &replay{log: log, keys: keyring.NewFSM()}
	r.fsm = keyring.Mux(r.keys, nobody{})
	snaps, err := raft.NewFileSnapshotStore(dir, 2, io.Discard)
	if err != nil {
		return nil, err
	}
	list, err := snaps.List()
	if err != nil || len(list) == 0 {
		return r, err
	}
	_, in, err := snaps.Open(list[0].ID)
	if err != nil {
		return nil, err
	}
	r.at = list[0].Index
	return r, r.fsm.Restore(in)
}

// to applies the log up to an index, and returns the keyring's snapshot.
func (r *replay) to(index uint64) ([]byte, error) {
	for r.at < index {
		var entry raft.Log
		if err := r.log.GetLog(r.at+1, &entry); err != nil {
			return nil, err
		}
		if entry.Type == raft.LogCommand {
			r.fsm.Apply(&entry)
		}
		r.at++
	}
	var out sink
	snapshot, err := r.keys.Snapshot()
	if err == nil {
		err = snapshot.Persist(&out)
	}
	return out.Bytes(), err
}

// nobody is the FSM of a host that has no state.
type nobody struct{}

func (nobody) Apply(*raft.Log) any                 { return nil }
func (nobody) Snapshot() (raft.FSMSnapshot, error) { return nil, nil }
func (nobody) Restore(in io.ReadCloser) error {
	_, err := io.Copy(io.Discard, in)
	return err
}

// sink is a raft.SnapshotSink in memory.
type sink struct{ bytes.Buffer }

func (*sink) Close() error  { return nil }
func (*sink) Cancel() error { return nil }
func (*sink) ID() string    { return "" }
