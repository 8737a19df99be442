package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/node"
)

// anotherKEK is a KEK that no server of a cluster has.
func anotherKEK(t *testing.T) keyring.KEK { return kektest.File(t, bytes.Repeat([]byte{7}, 32)) }

// fullDisks has these servers create no file until it is told to stop.
func fullDisks(c *keyringtest.Cluster, full func(*keyringtest.Server) bool) (stop func()) {
	c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
		if full(e.Server) && e.Kind == "disk" && strings.HasPrefix(e.What, "create") {
			return keyringtest.Reply{Err: errors.New("no space left on device")}
		}
		return keyringtest.Reply{}
	})
	return func() { c.OnEvent(nil) }
}

// quiet requires that a server's own Status has nothing to say of its files and keys.
func quiet(t *testing.T, s *keyringtest.Server, when string) {
	t.Helper()
	st, err := s.Keyring.Status(t.Context())
	if err != nil || len(st.Missing)+len(st.Orphans)+len(st.SetAside)+st.OnOldKEKs > 0 {
		t.Errorf("%s: %s: missing %v, orphans %v, set aside %v, %d on old KEKs; %v",
			when, s.ID, st.Missing, st.Orphans, st.SetAside, st.OnOldKEKs, err)
	}
	for _, p := range st.Problems {
		// That the keystore's ID is another one is told as a notice until the next start.
		another := p.Kind == keyring.ProblemKeystore && p.Severity == keyring.SeverityNotice
		if p.Kind != keyring.ProblemInlineKEK && p.Kind != keyring.ProblemBackup && p.Kind != keyring.ProblemUnreachable && !another {
			t.Errorf("%s: %s: %v", when, s.ID, p)
		}
	}
}

// TestOfferedKeyThatNeverComesIsNoProblem of a server that could not write it.
func TestOfferedKeyThatNeverComesIsNoProblem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		f := keyringtest.Follower(c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server == f && e.Kind == "disk" && strings.HasPrefix(e.What, "create") || e.Server == leader && e.Kind == "log" {
				return keyringtest.Reply{Err: errors.New("no space left on device")}
			}
			return keyringtest.Reply{}
		})
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err == nil {
			t.Fatal("the key was added")
		}
		time.Sleep(time.Minute) // virtual
		c.OnEvent(nil)
		if len(f.Disk.Names()) != 2 {
			t.Fatalf("it has files %v", f.Disk.Names())
		}
		if err := f.Keyring.Rewrap(t.Context()); err != nil {
			t.Error(err)
		}
		quiet(t, f, "after an offer that came to nothing")
	})
}

// TestPendingKeyIsNoProblemOnceItIsGone or need not wait.
func TestPendingKeyIsNoProblemOnceItIsGone(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		o   keyring.RotateOptions
		end func(t *testing.T, leader *keyringtest.Server, key keyring.KeyID) error
	}{
		"removed": {keyring.RotateOptions{}, func(t *testing.T, leader *keyringtest.Server, key keyring.KeyID) error {
			return leader.Keyring.Remove(t.Context(), key, keyring.RemoveOptions{})
		}},
		"dropped by a full rotation": {keyring.RotateOptions{Publish: time.Now().Add(24 * time.Hour)}, func(t *testing.T, leader *keyringtest.Server, _ keyring.KeyID) error {
			_, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true})
			return err
		}},
		"held, and not due": {keyring.RotateOptions{Publish: time.Now().Add(1000000 * time.Hour)}, func(*testing.T, *keyringtest.Server, keyring.KeyID) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
					cfg.Rotation.Every, cfg.Data = -1, keyring.NoData{}
				}})
				leader := keyringtest.Ready(t, c)
				keyringtest.AwaitKeys(t, c)
				stop := fullDisks(c, func(s *keyringtest.Server) bool { return s != leader })
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				key, err := leader.Keyring.Rotate(ctx, tt.o)
				if !errors.Is(err, keyring.ErrNotDurable) || len(keyringtest.Problems(t, leader, keyring.ProblemKeyPending)) != 1 {
					t.Fatalf("%v, and %v", err, keyringtest.Problems(t, leader, keyring.ProblemKeyPending))
				}
				stop()
				if err := tt.end(t, leader, key.ID); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour) // virtual
				if p := keyringtest.Problems(t, leader, keyring.ProblemKeyPending); len(p) > 0 || c.Leader() != leader {
					t.Errorf("an hour later: %v", p)
				}
			})
		})
	}
}

// TestKeyFileThatIsMovedAwayIsFetched without a restart: it is under a KEK that the server does not have any more.
func TestKeyFileThatIsMovedAwayIsFetched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var f *keyringtest.Server
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			if s == f {
				cfg.KEKs = []keyring.KEK{anotherKEK(t)}
			}
		}})
		keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		f = keyringtest.Follower(c)
		key := f.Keyring.Keys()[0].ID
		c.Restart(f)
		time.Sleep(10 * time.Second) // virtual
		if p := keyringtest.Problems(t, f, keyring.ProblemKEKUnconfigured); len(p) != 1 {
			t.Fatalf("with another KEK: %v", p)
		}
		f.Disk.Unlink(nks.FileName(key))
		time.Sleep(2 * time.Minute) // virtual
		quiet(t, f, "after the file was moved away")
	})
}

// unexpectedFiles plant a file of which Status says something. They return the names, but for one that the start sets aside.
var unexpectedFiles = map[string]func(t *testing.T, s *keyringtest.Server) (names []string){
	"a file that was set aside": func(t *testing.T, s *keyringtest.Server) []string {
		s.Disk.Plant(nks.FileName(keyringtest.NewKeyID()), 0o600, []byte("hello"))
		return nil
	},
	"a keystore ID that was set aside": func(t *testing.T, s *keyringtest.Server) []string {
		s.Disk.Plant("keystore.id", 0o600, []byte("hello"))
		return nil
	},
	"an orphan": func(t *testing.T, s *keyringtest.Server) []string {
		id := keyringtest.NewKeyID()
		keyringtest.PlantKey(t, s.Disk, id, keyring.InlineKEK())
		return []string{nks.FileName(id)}
	},
	"an orphan under a KEK that is not configured": func(t *testing.T, s *keyringtest.Server) []string {
		id := keyringtest.NewKeyID()
		keyringtest.PlantKey(t, s.Disk, id, anotherKEK(t))
		return []string{nks.FileName(id)}
	},
	"a file of Nomad's that does not open": func(t *testing.T, s *keyringtest.Server) []string {
		name := keyringtest.NewKeyID().String() + ".aead.nks.json"
		s.Disk.Plant(name, 0o600, []byte("{}"))
		return []string{name}
	},
}

// TestWhatIsSaidOfAFileEndsWithIt while the server runs.
func TestWhatIsSaidOfAFileEndsWithIt(t *testing.T) {
	t.Parallel()
	for name, plant := range unexpectedFiles {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: keyringtest.NoRotation})
				s := keyringtest.Ready(t, c)
				c.Stop(s)
				names := plant(t, s)
				c.Start(s)
				keyringtest.Ready(t, c)
				time.Sleep(time.Hour) // virtual
				st, err := s.Keyring.Status(t.Context())
				if err != nil || len(st.Problems) < 2 {
					t.Fatalf("nothing is said of it: %v, %v", st.Problems, err)
				}
				moved := map[string][]byte{}
				for _, name := range append(names, st.SetAside...) {
					moved[name] = bytes.Clone(s.Disk.Bytes(name))
					s.Disk.Unlink(name)
				}
				time.Sleep(2 * time.Minute) // virtual
				quiet(t, s, "after it was moved away")
				if len(names) == 0 {
					return
				}
				for name, data := range moved {
					s.Disk.Plant(name, 0o600, data)
				}
				time.Sleep(2 * time.Hour) // virtual
				again, _ := s.Keyring.Status(t.Context())
				if !slices.Equal(again.Orphans, st.Orphans) {
					t.Errorf("after it came back: orphans %v, were %v", again.Orphans, st.Orphans)
				}
			})
		})
	}
}

// inspected is the directory of a server that has had all kinds of files.
type inspected struct {
	dir, keystore string
	kek           keyring.KEK // the keys are under it, and inline
	ids           []keyring.KeyID
	removed       string // the name that the file of ids[0] had
	other         keyring.KeyID
	nomads        []keystoretest.NomadKey
}

func newInspected(t *testing.T, ctx context.Context) *inspected {
	t.Helper()
	d := &inspected{dir: t.TempDir(), kek: kektest.File(t, kektest.CountingKey()), other: keyring.KeyID{1}}
	d.keystore = filepath.Join(d.dir, "keystore")
	n, err := node.Start(ctx, node.Config{
		Dir: d.dir, KEKs: []keyring.KEK{d.kek, keyring.InlineKEK()}, Data: keyring.NoData{}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		key, err := n.Rotate(ctx, keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		d.ids = append(d.ids, key.ID)
	}
	d.removed = d.name(0)
	if err := errors.Join(n.Remove(ctx, d.ids[0], keyring.RemoveOptions{}), n.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(d.keystore, d.removed)); err == nil { // it had no time to be set aside
		if err := os.Rename(filepath.Join(d.keystore, d.removed), filepath.Join(d.keystore, d.removed+".removed-1")); err != nil {
			t.Fatal(err)
		}
	}
	d.spoil(t)
	return d
}

func (d *inspected) name(i int) string { return d.ids[i].String() + ".nks.json" }

func (d *inspected) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.keystore, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (d *inspected) write(t *testing.T, name string, b []byte, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(d.keystore, name)
	if err := errors.Join(os.WriteFile(path, b, mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// spoil adds what a server would not write.
func (d *inspected) spoil(t *testing.T) {
	t.Helper()
	d.write(t, d.name(1), d.read(t, d.name(1))[:100], 0o600)
	d.write(t, d.name(2), d.read(t, d.name(2)), 0o644)
	d.write(t, d.other.String()+".nks.json", d.read(t, d.name(3)), 0o600)
	d.write(t, d.other.String()+".nks.json.malformed-1", []byte("x"), 0o600)
	d.write(t, ".tmp-000102030405060708090a0b0c0d0e0f", nil, 0o600)
	d.write(t, "notes.txt", nil, 0o644)
	d.nomads = []keystoretest.NomadKey{keystoretest.NewNomadKey(t, 7, "1.4"), keystoretest.NewNomadKey(t, 8, "1.9"), keystoretest.NewNomadKey(t, 9, "damaged")}
	for _, key := range d.nomads {
		for file, content := range key.Files(t) {
			d.write(t, file, content, 0o600)
		}
	}
}

// want is what Inspect says of each file. What follows a colon is the beginning of an error.
func (d *inspected) want() map[string]string {
	return map[string]string{
		d.name(1):                      "key: ",
		d.name(2):                      "key, opens: others may read it",
		d.name(3):                      "key, opens",
		d.removed + ".removed-1":       "removed key, opens",
		d.other.String() + ".nks.json": "key: corrupt: the file is another key's: it names " + d.ids[3].String(),
		d.other.String() + ".nks.json.malformed-1":       "set aside: ",
		d.nomads[0].ID.String() + ".nks.json":            "Nomad's key: ", // InlineKEK is not given
		d.nomads[1].ID.String() + ".aead.local.nks.json": "Nomad's key: ",
		d.nomads[2].ID.String() + ".nks.json":            "Nomad's key: ",
		".tmp-000102030405060708090a0b0c0d0e0f":          "temporary",
		"notes.txt":                                      "foreign",
		"keystore.id":                                    "own",
		".lock":                                          "own",
	}
}

// TestInspectSaysWhatEachFileIs and changes none.
func TestInspectSaysWhatEachFileIs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, other := newInspected(t, ctx), kektest.File(t, bytes.Repeat([]byte{7}, 32))
	before := fmt.Sprint(os.ReadDir(d.keystore))

	reports, err := keyring.Inspect(ctx, d.keystore, other, d.kek)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range reports {
		got[r.Name] = string(r.Kind)
		if len(r.Opens) > 0 {
			got[r.Name] += ", opens"
		}
		if r.Err != nil {
			got[r.Name] += ": " + r.Err.Error()
		}
		good := r.Kind == keyring.FileKey && r.Err == nil
		if good && (r.Algorithm != "EdDSA" || time.Since(r.Created) > time.Hour || !slices.Equal(r.Opens, []string{d.kek.ID()}) || len(r.KEKs) != 2) {
			t.Errorf("%+v", r)
		}
	}
	for file, want := range d.want() {
		if got := got[file]; got != want && !(strings.Contains(want, ":") && strings.HasPrefix(got, want)) {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if after := fmt.Sprint(os.ReadDir(d.keystore)); after != before {
		t.Errorf("the directory had %s, now %s", before, after)
	}

	reports, err = keyring.Inspect(ctx, d.keystore, other)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		if r.Name == d.name(3) && (r.Err == nil || len(r.Opens) > 0 || !strings.HasPrefix(r.KEKs[0], "file")) {
			t.Errorf("without its KEK: %+v", r)
		}
	}
	if _, err := keyring.Inspect(ctx, filepath.Join(d.dir, "nowhere")); err == nil {
		t.Error("a directory that is not there")
	}
}
