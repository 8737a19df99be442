package keyringtest

// Records: a host that keeps sealed records, and a cluster of such hosts.

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
	"example.com/keyring/internal/meta"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// Records is a host's FSM: sealed records by name.
type Records struct {
	Keys    *keyring.FSM
	NoFence bool // Apply does not call Admit

	Mu  sync.Mutex // guards below
	All map[string][]byte
}

// RecordPut stores one record, or, with Old, only in place of that.
type RecordPut struct {
	Ref      string
	Old, New []byte
}

// ErrConflict is the answer to a RecordPut whose Old is no longer there.
var ErrConflict = errors.New("not what it was")

// Apply stores some records and returns an error for each.
func (r *Records) Apply(l *raft.Log) any {
	var puts []RecordPut
	if err := json.Unmarshal(l.Data, &puts); err != nil {
		panic(err)
	}
	r.Mu.Lock()
	defer r.Mu.Unlock()
	var errs []error
	for _, p := range puts {
		err := r.Keys.Admit(p.New)
		switch {
		case err != nil && !r.NoFence:
		case p.Old != nil && !bytes.Equal(p.Old, r.All[p.Ref]):
			err = ErrConflict
		default:
			r.All[p.Ref], err = p.New, nil
		}
		errs = append(errs, err)
	}
	return errs
}

// Copy returns all records.
func (r *Records) Copy() map[string][]byte {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	return maps.Clone(r.All)
}

// Snapshot implements raft.FSM.
func (r *Records) Snapshot() (raft.FSMSnapshot, error) { return recordsSnapshot(r.Copy()), nil }

// Restore implements raft.FSM.
func (r *Records) Restore(rc io.ReadCloser) error {
	all := map[string][]byte{}
	if err := errors.Join(json.NewDecoder(rc).Decode(&all), rc.Close()); err != nil {
		return err
	}
	r.Mu.Lock()
	defer r.Mu.Unlock()
	r.All = all
	return nil
}

type recordsSnapshot map[string][]byte

func (s recordsSnapshot) Persist(sink raft.SnapshotSink) error {
	return errors.Join(json.NewEncoder(sink).Encode(s), sink.Close())
}

func (recordsSnapshot) Release() {}

// RecordsData is the records of one server as SealedData. The hooks may be nil.
type RecordsData struct {
	Raft    *raft.Raft
	Records *Records

	mu        sync.Mutex // guards below
	Scanned   func()     // after each scan to the end
	Replacing func() error
	iterating bool
	Broken    string // what was done that must not be
	replaced  int
}

// Under implements keyring.SealedData: it yields what is under the key, without holding a lock while it does.
func (d *RecordsData) Under(ctx context.Context, key keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		d.Note(func() { d.iterating = true })
		defer d.Note(func() { d.iterating = false })
		all := d.Records.Copy()
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

// Note changes the hooks, or reads them, under the lock.
func (d *RecordsData) Note(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

type dataHooks struct {
	scanned   func()
	replacing func() error
}

func (d *RecordsData) hooks() (h dataHooks) {
	d.Note(func() { h = dataHooks{d.Scanned, d.Replacing} })
	return h
}

// Replace implements keyring.SealedData.
func (d *RecordsData) Replace(_ context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	var puts []RecordPut
	size := 0
	for _, r := range batch {
		size += len(r.Ciphertext)
		puts = append(puts, RecordPut{r.Ref, r.Ciphertext, r.New})
	}
	d.Note(func() {
		if d.iterating || len(batch) == 0 || len(batch) > 256 || len(batch) > 1 && size > 1<<20 {
			d.Broken = fmt.Sprintf("Replace of %d records of %d bytes, while Under iterates: %t", len(batch), size, d.iterating)
		}
	})
	if hook := d.hooks().replacing; hook != nil {
		if err := hook(); err != nil {
			return 0, err
		}
	}
	errs, err := PutRecords(d.Raft, puts...)
	for _, e := range errs {
		if e != nil {
			conflicts++
		}
	}
	d.Note(func() { d.replaced += len(errs) - conflicts })
	return conflicts, err
}

// Moved is how many records were replaced.
func (d *RecordsData) Moved() (n int) {
	d.Note(func() { n = d.replaced })
	return n
}

// Count implements keyring.Counter.
func (d *RecordsData) Count(_ context.Context, key keyring.KeyID) (n int, err error) {
	for _, c := range d.Records.Copy() {
		if id, _ := keyring.CiphertextKeyID(c); id == key {
			n++
		}
	}
	return n, nil
}

// PutRecords has a leader store records, and returns an error for each.
func PutRecords(r *raft.Raft, puts ...RecordPut) ([]error, error) {
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

// PutThrough has the leader store records, and joins the errors.
func PutThrough(ctx context.Context, n *node.Node, puts ...RecordPut) error {
	cmd, err := json.Marshal(puts)
	if err != nil {
		return err
	}
	answer, err := n.Apply(ctx, cmd)
	if err != nil {
		return err
	}
	return errors.Join(answer.([]error)...)
}

// RecordsCluster is a cluster whose servers keep sealed records.
type RecordsCluster struct {
	*Cluster
	Written map[string]string // what the records hold, by name

	mu   sync.Mutex // guards below
	data map[raft.ServerID]*RecordsData
}

// NewRecordsCluster starts one in which keys do not rotate by themselves. configure may be nil.
func NewRecordsCluster(t testing.TB, servers int, noFence bool, configure func(*keyring.Config)) *RecordsCluster {
	return NewRecordsClusterAt(t, time.Second, servers, noFence, configure)
}

// NewRecordsClusterAt is one with raft at another pace, for months.
func NewRecordsClusterAt(t testing.TB, pace time.Duration, servers int, noFence bool, configure func(*keyring.Config)) *RecordsCluster {
	rc := &RecordsCluster{Written: map[string]string{}, data: map[raft.ServerID]*RecordsData{}}
	rc.Cluster = NewCluster(t, Options{
		Servers: servers, Pace: pace,
		App: func(s *Server) raft.FSM {
			return &Records{Keys: s.FSM, NoFence: noFence, All: map[string][]byte{}}
		},
		Configure: func(s *Server, cfg *keyring.Config) {
			cfg.Rotation.Every = -1
			d := &RecordsData{Raft: s.Raft, Records: s.App.(*Records)}
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

// DataOf is the SealedData of a server.
func (rc *RecordsCluster) DataOf(s *Server) *RecordsData {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return rc.data[s.ID]
}

// Store writes records through the leader, by the helper that seals again.
func (rc *RecordsCluster) Store(prefix string, n int) {
	rc.TB.Helper()
	for i := range n {
		ref, text := fmt.Sprintf("%s/%d", prefix, i), fmt.Sprintf("secret of %s %d", prefix, i)
		if err := rc.StoreOne(ref, text); err != nil {
			rc.TB.Fatal(err)
		}
	}
}

// StoreOne is Store for one record.
func (rc *RecordsCluster) StoreOne(ref, text string) error {
	leader := Ready(rc.TB, rc.Cluster)
	err := leader.Keyring.EncryptTo(rc.TB.Context(), []byte(text), []byte(ref), func(_ context.Context, c []byte) error {
		errs, err := PutRecords(leader.Raft, RecordPut{Ref: ref, New: c})
		if err != nil {
			return err
		}
		return errs[0]
	})
	if err == nil {
		rc.Written[ref] = text
	}
	return err
}

// Check opens every record on every live server.
func (rc *RecordsCluster) Check(when string) {
	rc.TB.Helper()
	AwaitRing(rc.TB, rc.Cluster)
	for _, s := range rc.Live() {
		all := s.App.(*Records).Copy()
		for ref, want := range rc.Written {
			got, err := s.Keyring.Decrypt(all[ref], []byte(ref))
			if errors.Is(err, keyring.ErrUnknownKey) { // it has moved since it was read
				got, err = s.Keyring.Decrypt(s.App.(*Records).Copy()[ref], []byte(ref))
			}
			if err != nil || string(got) != want {
				rc.TB.Errorf("%s: %s: %s: %q, %v", when, s.ID, ref, got, err)
			}
		}
		if d := rc.DataOf(s); d.Broken != "" {
			rc.TB.Errorf("%s: %s", s.ID, d.Broken)
		}
	}
}

// Under counts the records under a key, on the leader.
func (rc *RecordsCluster) Under(id keyring.KeyID) int {
	n, _ := rc.DataOf(rc.Leader()).Count(rc.TB.Context(), id)
	return n
}

// State is what a key is on the leader, "removed" if it has a tombstone.
func (rc *RecordsCluster) State(id keyring.KeyID) keyring.State {
	if state := StateOf(rc.Leader(), id); state != "" {
		return state
	}
	if !Ring(rc.Leader().FSM).WasRemoved(meta.KeyID(id)) {
		rc.TB.Fatalf("there is no key %s", id)
	}
	return "removed"
}

// Await waits, in virtual time, until a key is in a state.
func (rc *RecordsCluster) Await(id keyring.KeyID, want keyring.State) {
	rc.TB.Helper()
	for range 100_000 {
		if rc.State(id) == want {
			AwaitRing(rc.TB, rc.Cluster)
			return
		}
		time.Sleep(100 * time.Millisecond) // virtual
	}
	rc.TB.Fatalf("key %s is %s, and never %s; %d records are under it", id, rc.State(id), want, rc.Under(id))
}

// Rotate makes a key.
func (rc *RecordsCluster) Rotate(o keyring.RotateOptions) keyring.KeyID {
	rc.TB.Helper()
	key, err := Ready(rc.TB, rc.Cluster).Keyring.Rotate(rc.TB.Context(), o)
	if err != nil {
		rc.TB.Fatal(err)
	}
	return key.ID
}

// Active is the ID of the active key.
func (rc *RecordsCluster) Active() keyring.KeyID {
	return keyring.KeyID(Ring(Ready(rc.TB, rc.Cluster).FSM).Active().ID)
}

// Spoil alters a record where nobody looks.
func (rc *RecordsCluster) Spoil(ref string) {
	rc.TB.Helper()
	AwaitRing(rc.TB, rc.Cluster)
	for _, s := range rc.Live() {
		app := s.App.(*Records)
		app.Mu.Lock()
		c := append([]byte(nil), app.All[ref]...)
		c[len(c)-1] ^= 1
		app.All[ref] = c
		app.Mu.Unlock()
	}
	delete(rc.Written, ref)
}
