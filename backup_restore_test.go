package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/simulated"
	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
)

// TestInterruptedRestoreIsFinishedByAnother: a crash at every operation, with what was not synced
// kept, dropped, reordered and torn.
func TestInterruptedRestoreIsFinishedByAnother(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	under := kektest.File(t, bytes.Repeat([]byte{7}, 32))
	restore := func(d *keyringtest.Disk) error {
		fsys, err := d.Open()
		if err != nil {
			return err
		}
		o := keyring.RestoreOptions{Dir: "simulated", KEKs: []keyring.KEK{under}, Identities: []age.Identity{identity}, Unauthenticated: true}
		_, err = keyring.Restore(simulated.WithDisk(t.Context(), fsys), bytes.NewReader(file), o)
		return err
	}
	for at := int64(1); ; at++ {
		for _, how := range keyringtest.Losses {
			d := keyringtest.NewDisk()
			var ops atomic.Int64
			d.OnOp(func(keyringtest.Op) keyringtest.Fault {
				if ops.Add(1) >= at {
					return keyringtest.Fault{Err: keyringtest.ErrCrashed, Applied: at%2 == 0}
				}
				return keyringtest.Fault{}
			})
			err := restore(d)
			if ops.Load() < at {
				if err != nil || at < 20 {
					t.Errorf("undisturbed, %d operations: %v", ops.Load(), err)
				}
				return
			}
			d = d.Crash(how, uint64(at))
			if err := restore(d); err != nil {
				t.Errorf("after a crash at operation %d, %v: %v, in a directory with %v", at, how, err, d.Names())
				continue
			}
			fsys, err := d.Open()
			if err != nil {
				t.Fatal(err)
			}
			s, err := keystore.Open(t.Context(), fsys, kek.NewSet([]keyring.KEK{under}, nil), hclog.NewNullLogger())
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range m.Keys {
				if !s.Holds(&meta.Key{ID: meta.KeyID(k.ID), Check: meta.CheckValue(k.Check)}) {
					t.Errorf("after a crash at operation %d, %v: key %s is not there", at, how, k.ID)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestRestoreIsDoneOnlyWhenItsKeysAreDurable: what an earlier one has renamed and could not sync is
// still to be done.
func TestRestoreIsDoneOnlyWhenItsKeysAreDurable(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	d := keyringtest.NewDisk()
	restore := func() error {
		fsys, err := d.Open()
		if err != nil {
			t.Fatal(err)
		}
		o := keyring.RestoreOptions{Dir: "simulated", KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Unauthenticated: true}
		_, err = keyring.Restore(simulated.WithDisk(t.Context(), fsys), bytes.NewReader(file), o)
		return err
	}
	renamed := false
	broken := errors.New("input/output error")
	d.OnOp(func(op keyringtest.Op) (f keyringtest.Fault) {
		renamed = renamed || op.Kind == "rename" && strings.HasPrefix(op.To, m.Keys[0].ID.String())
		if renamed && op.Kind == "dirsync" {
			f.Err = broken
		}
		return f
	})
	for range 2 {
		if err := restore(); !errors.Is(err, broken) || !renamed {
			t.Errorf("while nothing can be synced: %v", err)
		}
	}
	d.OnOp(nil)
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	names := d.Crash(keyringtest.Dropped, 0).Names()
	for _, k := range m.Keys {
		if !slices.Contains(names, k.ID.String()+".nks.json") {
			t.Errorf("key %s is gone with what was not synced: %v", k.ID, names)
		}
	}
}

// TestRestoreUnderMoreKEKs than the time before wraps the keys under all of them: the last alone
// opens them then.
func TestRestoreUnderMoreKEKs(t *testing.T) {
	file, _, identity := keyringtest.SmallBackup(t)
	inline, another := keyring.InlineKEK(), kektest.File(t, kektest.CountingKey())
	dir := t.TempDir()
	for _, keks := range [][]keyring.KEK{{inline}, {inline, another}, {another}} {
		_, err := keyring.Restore(t.Context(), bytes.NewReader(file), keyring.RestoreOptions{Dir: dir, KEKs: keks, Identities: []age.Identity{identity}, Unauthenticated: true})
		if err != nil {
			t.Errorf("under %d KEKs: %v", len(keks), err)
		}
	}
}

// TestRestoreOverwritesNothing of what is not from the same backup.
func TestRestoreOverwritesNothing(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	other, _, otherIdentity := keyringtest.SmallBackup(t)
	options := func(dir string) keyring.RestoreOptions {
		return keyring.RestoreOptions{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity, otherIdentity}, Unauthenticated: true}
	}
	restored := t.TempDir()
	if _, err := keyring.Restore(t.Context(), bytes.NewReader(file), options(restored)); err != nil {
		t.Fatal(err)
	}
	name := m.Keys[0].ID.String() + ".nks.json"
	whole, err := os.ReadFile(filepath.Join(restored, name))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, content, why string }{
		{"raft.db", "x", "raft.db"},
		{name, "not a key", "malformed"},
		{name[:8] + "-0000-4000-8000-000000000000.nks.json", string(whole), "misnamed"},
		{name + ".wrong-1", "x", "wrong-1"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, test.name)
		if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := keyring.Restore(t.Context(), bytes.NewReader(file), options(dir))
		if err == nil || !strings.Contains(err.Error(), test.why) {
			t.Errorf("%s: restored beside it, or not for %q: %v", test.name, test.why, err)
		}
		found := false
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			b, _ := os.ReadFile(filepath.Join(dir, e.Name()))
			found = found || string(b) == test.content
		}
		if !found {
			t.Errorf("%s: its content is gone: %v", test.name, entries)
		}
	}
	for what, o := range map[string]keyring.RestoreOptions{"another backup": options(restored), "under another KEK": options(restored)} {
		b := other
		if strings.Contains(what, "KEK") {
			b = file
			o.KEKs = []keyring.KEK{kektest.File(t, bytes.Repeat([]byte{1}, 32))}
		}
		if _, err := keyring.Restore(t.Context(), bytes.NewReader(b), o); err == nil {
			t.Errorf("%s: restored over it", what)
		}
		if now, err := os.ReadFile(filepath.Join(restored, name)); err != nil || !bytes.Equal(now, whole) {
			t.Errorf("%s: the file has changed: %v", what, err)
		}
	}
	if _, err := keyring.Restore(t.Context(), bytes.NewReader(file), options(restored)); err != nil {
		t.Errorf("the same again: %v", err)
	}
}

// TestRestoreChecksTheDigest before a key is written.
func TestRestoreChecksTheDigest(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	for _, right := range []bool{false, true} {
		o := keyring.RestoreOptions{
			Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Digest: m.SHA256,
		}
		if !right {
			o.Digest[0]++
		}
		var snapshot bytes.Buffer
		o.Snapshot = &snapshot
		got, err := keyring.Restore(t.Context(), bytes.NewReader(file), o)
		if (err == nil) != right || (len(keyringtest.KeyFilesIn(t, o.Dir)) > 0) != right {
			t.Errorf("right: %t; %v, %v", right, err, keyringtest.KeyFilesIn(t, o.Dir))
		}
		if right && int64(snapshot.Len()) != got.Raft.Size {
			t.Errorf("a snapshot of %d bytes, not %d", snapshot.Len(), got.Raft.Size)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := keyring.Restore(ctx, bytes.NewReader(file), keyring.RestoreOptions{
		Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Digest: m.SHA256,
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for _, o := range []keyring.RestoreOptions{
		{KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Unauthenticated: true},
		{Dir: t.TempDir(), Identities: []age.Identity{identity}, Unauthenticated: true},
		{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Unauthenticated: true},
		{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}}, // whose is it?
		{Dir: t.TempDir(), KEKs: []keyring.KEK{nil}, Identities: []age.Identity{identity}, Unauthenticated: true},
	} {
		if _, err := keyring.Restore(t.Context(), bytes.NewReader(file), o); err == nil {
			t.Errorf("restored with %s", fmt.Sprint(o.Dir != "", len(o.KEKs), len(o.Identities)))
		}
	}
}

// TestRestoreAsksBeforeItWrites: a host with a raft of its own creates the snapshot when it knows what it is of,
// and has the last word before a key is written.
func TestRestoreAsksBeforeItWrites(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	errNo := errors.New("no")
	restore := func(dir string, change func(*keyring.RestoreOptions)) error {
		o := keyring.RestoreOptions{
			Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Digest: m.SHA256,
		}
		change(&o)
		_, err := keyring.Restore(t.Context(), bytes.NewReader(file), o)
		return err
	}
	var snapshot, other bytes.Buffer
	var asked []string
	dir := filepath.Join(t.TempDir(), "keystore")
	err := restore(dir, func(o *keyring.RestoreOptions) {
		o.OpenSnapshot = func(got keyring.Manifest) (io.Writer, error) {
			asked = append(asked, "snapshot")
			if fmt.Sprint(got.Raft) != fmt.Sprint(m.Raft) || got.Host != m.Host || len(keyringtest.FilesIn(t, dir)) > 0 {
				t.Errorf("the snapshot is of %+v, with %v there; want %+v", got, keyringtest.FilesIn(t, dir), m)
			}
			return &snapshot, nil
		}
		o.Confirm = func(_ context.Context, got keyring.Manifest) error {
			asked = append(asked, "confirm")
			if got.SHA256 != m.SHA256 || int64(snapshot.Len()) != m.Raft.Size || len(keyringtest.FilesIn(t, dir)) > 0 {
				t.Errorf("asked to confirm %+v, with %d bytes of the snapshot and %v there", got, snapshot.Len(), keyringtest.FilesIn(t, dir))
			}
			return nil
		}
	})
	if err != nil || !slices.Equal(asked, []string{"snapshot", "confirm"}) || len(keyringtest.KeyFilesIn(t, dir)) != len(m.Keys) {
		t.Errorf("%v, asked %v, and %v are there", err, asked, keyringtest.FilesIn(t, dir))
	}
	for name, change := range map[string]func(*keyring.RestoreOptions){
		"no snapshot": func(o *keyring.RestoreOptions) {
			o.OpenSnapshot = func(keyring.Manifest) (io.Writer, error) { return nil, errNo }
		},
		"not confirmed": func(o *keyring.RestoreOptions) {
			o.Confirm = func(context.Context, keyring.Manifest) error { return errNo }
		},
	} {
		dir := filepath.Join(t.TempDir(), "keystore")
		if err := restore(dir, change); !errors.Is(err, errNo) || len(keyringtest.FilesIn(t, dir)) > 0 {
			t.Errorf("%s: %v, and %v are there", name, err, keyringtest.FilesIn(t, dir))
		}
	}
	err = restore(filepath.Join(t.TempDir(), "keystore"), func(o *keyring.RestoreOptions) {
		o.Snapshot = &other
		o.OpenSnapshot = func(keyring.Manifest) (io.Writer, error) { return &other, nil }
	})
	if err == nil || other.Len() > 0 {
		t.Errorf("two places for the snapshot: %v", err)
	}
}
