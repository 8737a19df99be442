package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
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
		if p.Kind != keyring.ProblemInlineKEK && p.Kind != keyring.ProblemUnreachable {
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
		if p := keyringtest.Problems(t, f, keyring.ProblemKEKAway); len(p) != 1 {
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
