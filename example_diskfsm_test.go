package keyring_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// diskFSM is a host's FSM that is on disk, in bbolt: sealed records by name, and the index of the last entry
// that is in it. It is what it was after a restart, so raft need not restore a snapshot at the start.
type diskFSM struct {
	keys *keyring.FSM
	mu   sync.RWMutex // guards db, which a restore replaces
	db   *bbolt.DB
}

// view reads from the database.
func (d *diskFSM) view(do func(*bbolt.Tx) error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.db.View(do)
}

var (
	recordsBucket = []byte("records")
	stateBucket   = []byte("state")
	appliedKey    = []byte("applied")
)

func openDiskFSM(path string, keys *keyring.FSM) (*diskFSM, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true}) // a test; others sync
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(recordsBucket)
		_, err2 := tx.CreateBucketIfNotExists(stateBucket)
		return errors.Join(err, err2)
	})
	return &diskFSM{keys: keys, db: db}, err
}

// applied is the index of the last entry that is in the database.
func (d *diskFSM) applied() (index uint64) {
	_ = d.view(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(stateBucket).Get(appliedKey); b != nil {
			index = binary.BigEndian.Uint64(b)
		}
		return nil
	})
	return index
}

// diskWrite is its command: a record, and the SHA-256 of the ciphertext that New replaces, which keeps the command short.
// Without Old it replaces any.
type diskWrite struct {
	Name     string
	Old, New []byte
}

func hashOf(ciphertext []byte) []byte {
	sum := sha256.Sum256(ciphertext)
	return sum[:]
}

func (w diskWrite) encode() []byte {
	b, err := json.Marshal(w)
	if err != nil {
		panic(err) // never: it has a string and bytes
	}
	return b
}

// errReplaced is the answer of Apply to a diskWrite whose Old is not stored any more.
var errReplaced = errors.New("the record has changed")

// Apply stores a record, and with it the index: raft gives entries again that were applied after its last snapshot.
func (d *diskFSM) Apply(l *raft.Log) any {
	if l.Index <= d.applied() {
		return nil
	}
	var w diskWrite
	refused := json.Unmarshal(l.Data, &w)
	if refused == nil {
		refused = d.keys.Admit(w.New)
	}
	if errors.Is(refused, keyring.ErrNotLoaded) {
		panic(refused) // the other servers may admit it: this one must not go on
	}
	err := d.db.Update(func(tx *bbolt.Tx) error {
		records, name := tx.Bucket(recordsBucket), []byte(w.Name)
		if refused == nil && w.Old != nil && !bytes.Equal(w.Old, hashOf(records.Get(name))) {
			refused = errReplaced
		}
		if refused == nil {
			if err := records.Put(name, w.New); err != nil {
				return err
			}
		}
		return tx.Bucket(stateBucket).Put(appliedKey, binary.BigEndian.AppendUint64(nil, l.Index))
	})
	return errors.Join(refused, err)
}

// Snapshot is for servers that join or are behind, and for backups: it is the database.
func (d *diskFSM) Snapshot() (raft.FSMSnapshot, error) {
	tx, err := d.db.Begin(false)
	return diskSnapshot{tx}, err
}

type diskSnapshot struct{ tx *bbolt.Tx }

func (s diskSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.tx.WriteTo(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s diskSnapshot) Release() { s.tx.Rollback() }

// Restore takes the place of the database by rename, so that a crash leaves the old one or the new one.
func (d *diskFSM) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	path := d.db.Path()
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, rc)
	if err := errors.Join(err, f.Sync(), f.Close(), d.db.Close(), os.Rename(path+".new", path)); err != nil {
		return err
	}
	restored, err := openDiskFSM(path, d.keys)
	if err == nil {
		d.db = restored.db
	}
	return err
}

// diskData is where its records are, as SealedData.
type diskData struct {
	fsm  *diskFSM
	raft *raft.Raft
}

func (d *diskData) Under(_ context.Context, key keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		all, err := d.fsm.records()
		if err != nil {
			yield(keyring.Sealed{}, err)
			return
		}
		for name, sealed := range all {
			if id, _ := keyring.CiphertextKeyID(sealed); id == key && !yield(keyring.Sealed{Ref: name, Ciphertext: sealed, AAD: []byte(name)}, nil) {
				return
			}
		}
	}
}

func (d *diskData) Replace(ctx context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	for _, r := range batch {
		answer, err := records.Through(d.raft)(ctx, diskWrite{r.Ref, hashOf(r.Ciphertext), r.New}.encode())
		if err != nil {
			return conflicts, err
		}
		switch err, _ := answer.(error); {
		case errors.Is(err, errReplaced), errors.Is(err, keyring.ErrStaleKey): // a writer was first, or a rotation
			conflicts++
		case err != nil:
			return conflicts, err
		}
	}
	return conflicts, nil
}

func (d *diskFSM) records() (map[string][]byte, error) {
	all := map[string][]byte{}
	err := d.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(recordsBucket).ForEach(func(name, sealed []byte) error {
			all[string(name)] = bytes.Clone(sealed)
			return nil
		})
	})
	return all, err
}

// startDiskHost is how such a host starts. It lets raft leave its snapshot alone only if the database has all that
// is in it: one that came from the leader may have been written just before a crash, and not restored.
func startDiskHost(t *testing.T, h *keyringtest.Host, dir string) (app *diskFSM, restores bool) {
	t.Helper()
	h.FSM = keyring.NewFSM()
	app, err := openDiskFSM(filepath.Join(dir, string(h.ID)+".db"), h.FSM)
	if err != nil {
		t.Fatal(err)
	}
	list, err := h.Snaps.List()
	if err != nil {
		t.Fatal(err)
	}
	h.Conf.NoSnapshotRestoreOnStart = len(list) == 0 || app.applied() >= list[0].Index
	if h.Conf.NoSnapshotRestoreOnStart {
		if err := h.FSM.Load(h.Snaps); err != nil { // before raft.NewRaft
			t.Fatal(err)
		}
	}
	h.Run(t, keyring.Mux(h.FSM, app))
	cfg := h.Config()
	cfg.Data = &diskData{app, h.Raft}
	if h.Keyring, err = keyring.Open(h.OnDisk(t), cfg); err != nil {
		t.Fatal(err)
	}
	h.Serving.Store(h.Keyring)
	return app, !h.Conf.NoSnapshotRestoreOnStart
}

// TestHostWithItsFSMOnDisk: three servers through restarts, snapshots, a restored snapshot and a full rotation.
func TestHostWithItsFSMOnDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, hosts := t.TempDir(), keyringtest.NewHosts(t, 3)
		apps := map[*keyringtest.Host]*diskFSM{}
		defer func() {
			for _, h := range hosts {
				h.Stop(t)
				apps[h].db.Close()
			}
		}()
		for _, h := range hosts {
			apps[h], _ = startDiskHost(t, h, dir)
		}
		n := 0
		put := func() {
			t.Helper()
			n++
			name := fmt.Sprint("r", n)
			leader := keyringtest.LeaderOf(t, hosts)
			sealed, err := leader.Keyring.Encrypt([]byte("secret"), []byte(name))
			if err != nil {
				t.Fatal(err)
			}
			f := leader.Raft.Apply(diskWrite{Name: name, New: sealed}.encode(), time.Minute)
			if err := f.Error(); err != nil {
				t.Fatal(err)
			}
			if err, ok := f.Response().(error); ok && err != nil {
				t.Fatal(err)
			}
		}
		same := func(what string) {
			t.Helper()
			time.Sleep(time.Minute)
			for _, h := range hosts {
				all, err := apps[h].records()
				if err != nil || len(all) != n {
					t.Errorf("%s: %s has %d records of %d, %v", what, h.ID, len(all), n, err)
				}
				for name, sealed := range all {
					if _, err := h.Keyring.Decrypt(sealed, []byte(name)); err != nil {
						t.Errorf("%s: %s: %s: %v", what, h.ID, name, err)
					}
				}
				if !bytes.Equal(keyringtest.SnapshotOf(t, h.FSM), keyringtest.SnapshotOf(t, hosts[0].FSM)) {
					t.Errorf("%s: %s has another ring", what, h.ID)
				}
			}
		}
		loaded := 0
		for i := range 2 {
			for _, h := range hosts {
				put()
				time.Sleep(time.Minute)
				if err := h.Raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
				put() // is in the database, and after the snapshot
				if i == 1 {
					if _, err := keyringtest.LeaderOf(t, hosts).Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				h.Stop(t)
				apps[h].db.Close()
				var restores bool
				if apps[h], restores = startDiskHost(t, h, dir); !restores {
					loaded++
				}
				put()
				same(fmt.Sprintf("restart of %s", h.ID))
			}
		}
		if loaded == 0 {
			t.Error("raft has restored its snapshot at every start: that was no test")
		}
		before, err := apps[hosts[0]].records()
		if err != nil {
			t.Fatal(err)
		}
		old := keyringtest.LeaderOf(t, hosts).Keyring.Keys()[0].ID
		if _, err := keyringtest.LeaderOf(t, hosts).Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true}); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitState(keyringtest.LeaderOf(t, hosts).Keyring, old, keyring.StateDeprecated)
		same("full rotation")

		leader := keyringtest.LeaderOf(t, hosts)
		moved, err := apps[leader].records()
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := leader.Keyring.Encrypt([]byte("late"), []byte("r1"))
		if err != nil {
			t.Fatal(err)
		}
		conflicts, err := (&diskData{apps[leader], leader.Raft}).Replace(t.Context(), []keyring.Replacement{
			{Sealed: keyring.Sealed{Ref: "r1", Ciphertext: before["r1"]}, New: fresh},
			{Sealed: keyring.Sealed{Ref: "r1", Ciphertext: moved["r1"]}, New: before["r1"]},
		})
		if now, err2 := apps[leader].records(); err != nil || err2 != nil || conflicts != 2 || !bytes.Equal(now["r1"], moved["r1"]) {
			t.Errorf("a record that was replaced first, and a key that is not active: %d conflicts of 2, %v, %v", conflicts, err, err2)
		}
		f := leader.Raft.Snapshot()
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		m, saved, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		count := n
		put()
		if err := leader.Raft.Restore(m, saved, time.Minute); err != nil {
			t.Fatal(err)
		}
		n = count
		put()
		n = count + 1
		same("restored snapshot")
		h := keyringtest.OtherHost(hosts, keyringtest.LeaderOf(t, hosts))
		h.Stop(t)
		apps[h].db.Close()
		apps[h], _ = startDiskHost(t, h, dir)
		put()
		same("restart after the restore")
	})
}
