package keyring_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// records is a host's FSM: sealed records by name.
type records struct {
	keys    *keyring.FSM
	noFence bool // Apply does not call Admit

	mu  sync.Mutex // guards below
	all map[string][]byte
}

// recordPut stores one record, or, with Old, only in place of that.
type recordPut struct {
	Ref      string
	Old, New []byte
}

var errConflict = errors.New("not what it was")

// Apply stores some records and returns an error for each.
func (r *records) Apply(l *raft.Log) any {
	var puts []recordPut
	if err := json.Unmarshal(l.Data, &puts); err != nil {
		panic(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, p := range puts {
		err := r.keys.Admit(p.New)
		switch {
		case err != nil && !r.noFence:
		case p.Old != nil && !bytes.Equal(p.Old, r.all[p.Ref]):
			err = errConflict
		default:
			r.all[p.Ref], err = p.New, nil
		}
		errs = append(errs, err)
	}
	return errs
}

func (r *records) copy() map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.all)
}

func (r *records) Snapshot() (raft.FSMSnapshot, error) { return recordsSnapshot(r.copy()), nil }

func (r *records) Restore(rc io.ReadCloser) error {
	all := map[string][]byte{}
	if err := errors.Join(json.NewDecoder(rc).Decode(&all), rc.Close()); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = all
	return nil
}

type recordsSnapshot map[string][]byte

func (s recordsSnapshot) Persist(sink raft.SnapshotSink) error {
	return errors.Join(json.NewEncoder(sink).Encode(s), sink.Close())
}

func (recordsSnapshot) Release() {}

// recordsData is the records of one server as SealedData. The hooks may be nil.
type recordsData struct {
	raft    *raft.Raft
	records *records

	mu        sync.Mutex // guards below
	scanned   func()     // after each scan to the end
	replacing func() error
	iterating bool
	broken    string // what was done that must not be
	replaced  int
}

// Under yields what is under the key, without holding a lock while it does.
func (d *recordsData) Under(ctx context.Context, key keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		d.note(func() { d.iterating = true })
		defer d.note(func() { d.iterating = false })
		all := d.records.copy()
		for _, ref := range slices.Sorted(maps.Keys(all)) {
			if id, _ := keyring.CiphertextKeyID(all[ref]); id != key {
				continue
			}
			if !yield(keyring.Sealed{Ref: ref, Ciphertext: all[ref], AAD: []byte(ref)}, nil) {
				return
			}
		}
		if hook := d.hooks().scanned; hook != nil {
			hook()
		}
	}
}

func (d *recordsData) note(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

type hooks struct {
	scanned   func()
	replacing func() error
}

func (d *recordsData) hooks() (h hooks) {
	d.note(func() { h = hooks{d.scanned, d.replacing} })
	return h
}

func (d *recordsData) Replace(_ context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	var puts []recordPut
	size := 0
	for _, r := range batch {
		size += len(r.Ciphertext)
		puts = append(puts, recordPut{r.Ref, r.Ciphertext, r.New})
	}
	d.note(func() {
		if d.iterating || len(batch) == 0 || len(batch) > 256 || len(batch) > 1 && size > 1<<20 {
			d.broken = fmt.Sprintf("Replace of %d records of %d bytes, while Under iterates: %t", len(batch), size, d.iterating)
		}
	})
	if hook := d.hooks().replacing; hook != nil {
		if err := hook(); err != nil {
			return 0, err
		}
	}
	errs, err := apply(d.raft, puts...)
	for _, e := range errs {
		if e != nil {
			conflicts++
		}
	}
	d.note(func() { d.replaced += len(errs) - conflicts })
	return conflicts, err
}

func (d *recordsData) moved() (n int) {
	d.note(func() { n = d.replaced })
	return n
}

// Count implements keyring.Counter.
func (d *recordsData) Count(_ context.Context, key keyring.KeyID) (n int, err error) {
	for _, c := range d.records.copy() {
		if id, _ := keyring.CiphertextKeyID(c); id == key {
			n++
		}
	}
	return n, nil
}

func apply(r *raft.Raft, puts ...recordPut) ([]error, error) {
	b, err := json.Marshal(puts)
	if err != nil {
		return nil, err
	}
	f := r.Apply(b, time.Minute)
	if err := f.Error(); err != nil {
		return nil, err
	}
	errs, _ := f.Response().([]error)
	return errs, nil
}

// recordsCluster is a cluster whose servers keep sealed records.
type recordsCluster struct {
	*keyringtest.Cluster
	t       testing.TB
	written map[string]string // what the records hold, by name

	mu   sync.Mutex // guards below
	data map[raft.ServerID]*recordsData
}

func newRecordsCluster(t testing.TB, servers int, noFence bool, configure func(*keyring.Config)) *recordsCluster {
	return newRecordsClusterAt(t, time.Second, servers, noFence, configure)
}

// newRecordsClusterAt is for months.
func newRecordsClusterAt(t testing.TB, pace time.Duration, servers int, noFence bool, configure func(*keyring.Config)) *recordsCluster {
	rc := &recordsCluster{t: t, written: map[string]string{}, data: map[raft.ServerID]*recordsData{}}
	rc.Cluster = newCluster(t, keyringtest.Options{
		Servers: servers, Pace: pace,
		App: func(s *keyringtest.Server) raft.FSM {
			return &records{keys: s.FSM, noFence: noFence, all: map[string][]byte{}}
		},
		Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every = -1
			d := &recordsData{raft: s.Raft, records: s.App.(*records)}
			cfg.Data = d
			if configure != nil {
				configure(cfg)
			}
			rc.mu.Lock()
			defer rc.mu.Unlock()
			rc.data[s.ID] = d
		},
	})
	return rc
}

func (rc *recordsCluster) dataOf(s *keyringtest.Server) *recordsData {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return rc.data[s.ID]
}

// store writes records through the leader, by the helper that seals again.
func (rc *recordsCluster) store(prefix string, n int) {
	rc.t.Helper()
	for i := range n {
		ref, text := fmt.Sprintf("%s/%d", prefix, i), fmt.Sprintf("secret of %s %d", prefix, i)
		if err := rc.storeOne(ref, text); err != nil {
			rc.t.Fatal(err)
		}
	}
}

func (rc *recordsCluster) storeOne(ref, text string) error {
	leader := ready(rc.t, rc.Cluster)
	err := leader.Keyring.EncryptTo(rc.t.Context(), []byte(text), []byte(ref), func(_ context.Context, c []byte) error {
		errs, err := apply(leader.Raft, recordPut{Ref: ref, New: c})
		if err != nil {
			return err
		}
		return errs[0]
	})
	if err == nil {
		rc.written[ref] = text
	}
	return err
}

// check opens every record on every live server.
func (rc *recordsCluster) check(when string) {
	rc.t.Helper()
	level(rc.t, rc.Cluster)
	for _, s := range rc.Live() {
		all := s.App.(*records).copy()
		for ref, want := range rc.written {
			got, err := s.Keyring.Decrypt(all[ref], []byte(ref))
			if errors.Is(err, keyring.ErrUnknownKey) { // it has moved since it was read
				got, err = s.Keyring.Decrypt(s.App.(*records).copy()[ref], []byte(ref))
			}
			if err != nil || string(got) != want {
				rc.t.Errorf("%s: %s: %s: %q, %v", when, s.ID, ref, got, err)
			}
		}
		if d := rc.dataOf(s); d.broken != "" {
			rc.t.Errorf("%s: %s", s.ID, d.broken)
		}
	}
}

// under counts the records under a key, on the leader.
func (rc *recordsCluster) under(id keyring.KeyID) int {
	n, _ := rc.dataOf(rc.Leader()).Count(rc.t.Context(), id)
	return n
}

// state is what a key is on the leader, "removed" if it has a tombstone.
func (rc *recordsCluster) state(id keyring.KeyID) keyring.State {
	ring := keyring.Ring(rc.Leader().FSM)
	if ring.WasRemoved(id) {
		return "removed"
	}
	return ring.Key(id).State
}

// await waits, in virtual time, until a key is in a state.
func (rc *recordsCluster) await(id keyring.KeyID, want keyring.State) {
	rc.t.Helper()
	for range 100_000 {
		if rc.state(id) == want {
			level(rc.t, rc.Cluster)
			return
		}
		time.Sleep(100 * time.Millisecond) // virtual
	}
	rc.t.Fatalf("key %s is %s, and never %s; %d records are under it", id, rc.state(id), want, rc.under(id))
}

func (rc *recordsCluster) rotate(o keyring.RotateOptions) keyring.KeyID {
	rc.t.Helper()
	key, err := ready(rc.t, rc.Cluster).Keyring.Rotate(rc.t.Context(), o)
	if err != nil {
		rc.t.Fatal(err)
	}
	return key.ID
}

// active is the ID of the active key.
func (rc *recordsCluster) active() keyring.KeyID {
	return keyring.Ring(ready(rc.t, rc.Cluster).FSM).Active().ID
}
