package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// wellKnown asks a server for its JWKS, as a relying party does.
func wellKnown(s *keyringtest.Server) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.Keyring.WellKnown().ServeHTTP(w, httptest.NewRequest("GET", "/.well-known/jwks.json", nil))
	return w
}

// outdated is a cluster in which s3 has started on a snapshot from before the last rotation, and before
// a removal, and hears from nobody. It returns what only the others know: a ciphertext and a token of the
// active key.
func outdated(t *testing.T, restart func(c *keyringtest.Cluster, s3 *keyringtest.Server)) (c *keyringtest.Cluster, s3 *keyringtest.Server, sealed []byte, token string) {
	t.Helper()
	c = keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Raft: func(conf *raft.Config) { conf.TrailingLogs = 0 }})
	keyringtest.MakeLeader(t, c, firstReady(t, c))
	s3 = c.Server("s3")
	if err := s3.Raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	key := keyringtest.RotateWhenReady(t, c)
	leader := c.Leader()
	keyringtest.AwaitHolders(leader.Keyring, key.ID, 3)
	var err error
	if sealed, err = leader.Keyring.Encrypt([]byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	if token, err = leader.Keyring.Sign(map[string]any{"aud": "a"}); err != nil {
		t.Fatal(err)
	}
	c.Stop(s3)
	c.Partition(s3)
	restart(c, s3)
	c.Partition(s3)
	time.Sleep(2 * time.Second)
	return c, s3, sealed, token
}

// firstReady is a server that is ready and is not s3.
func firstReady(t *testing.T, c *keyringtest.Cluster) *keyringtest.Server {
	t.Helper()
	keyringtest.Ready(t, c)
	return c.Server("s1")
}

var anyone = keyring.Expect{Audience: []string{"a"}}

// TestServerThatHasNotCaughtUpSaysSo: what it does not know others may know, so it says that it is not
// ready; nothing is an orphan, nothing is renamed, and no relying party gets its JWKS.
func TestServerThatHasNotCaughtUpSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var before []string
		c, s3, sealed, token := outdated(t, func(c *keyringtest.Cluster, s3 *keyringtest.Server) {
			before = s3.Disk.Names()
			c.Start(s3)
		})
		if len(s3.Keyring.Keys()) != 1 {
			t.Fatalf("it knows %d keys", len(s3.Keyring.Keys()))
		}
		if _, err := s3.Keyring.Decrypt(sealed, nil); !errors.Is(err, keyring.ErrNotReady) || errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("Decrypt: %v", err)
		}
		if _, err := s3.Keyring.OpenNomad(keyring.KeyID{1}, nil); !errors.Is(err, keyring.ErrNotReady) {
			t.Errorf("OpenNomad: %v", err)
		}
		if err := s3.Keyring.Verify(token, anyone); !errors.Is(err, keyring.ErrNotReady) || errors.Is(err, keyring.ErrToken) {
			t.Errorf("Verify: %v", err)
		}
		if w := wellKnown(s3); w.Code != 503 || w.Header().Get("Cache-Control") != "no-store" || s3.Keyring.JWKS() != nil {
			t.Errorf("JWKS: %d, %q, %s", w.Code, w.Header().Get("Cache-Control"), s3.Keyring.JWKS())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s3.Keyring.WaitReady(ctx); err == nil || !strings.Contains(err.Error(), "caught up") {
			t.Errorf("WaitReady: %v", err)
		}
		st := keyringtest.StatusOf(t, s3)
		if st.CaughtUp || st.Ready || !st.LastContact.IsZero() || len(st.Orphans)+len(st.NoBackup) > 0 {
			t.Errorf("status %+v", st)
		}
		for _, kind := range []keyring.ProblemKind{keyring.ProblemBehind, keyring.ProblemNoLeader} {
			if len(keyringtest.Problems(t, s3, kind)) != 1 {
				t.Errorf("no problem %q in %v", kind, st.Problems)
			}
		}
		for _, p := range st.Problems {
			if strings.Contains(p.Advice, "move it away") || strings.Contains(p.Advice, "elete it") {
				t.Errorf("%v: %s", p, p.Advice)
			}
		}
		if after := s3.Disk.Names(); !slices.Equal(after, before) {
			t.Errorf("the keystore has %q, and had %q", after, before)
		}

		c.Partition()
		keyringtest.Ready(t, c)
		wantCaughtUp(t, s3, sealed, token)
		unknown := slices.Clone(sealed)
		unknown[1] ^= 1
		if _, err := s3.Keyring.Decrypt(unknown, nil); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("Decrypt of an unknown key: %v", err)
		}
	})
}

// wantCaughtUp wants a server to open, verify and say what one does that has caught up.
func wantCaughtUp(t *testing.T, s3 *keyringtest.Server, sealed []byte, token string) {
	t.Helper()
	if _, err := s3.Keyring.Decrypt(sealed, nil); err != nil {
		t.Errorf("Decrypt: %v", err)
	}
	if err := s3.Keyring.Verify(token, anyone); err != nil {
		t.Errorf("Verify: %v", err)
	}
	if w := wellKnown(s3); w.Code != 200 || w.Header().Get("Cache-Control") != "public, max-age=300" {
		t.Errorf("JWKS: %d, %q", w.Code, w.Header().Get("Cache-Control"))
	}
	if st := keyringtest.StatusOf(t, s3); !st.CaughtUp || st.LastContact.IsZero() || len(keyringtest.Problems(t, s3, keyring.ProblemBehind))+len(keyringtest.Problems(t, s3, keyring.ProblemNoLeader)) > 0 {
		t.Errorf("status %+v", st)
	}
}

// TestI8NothingIsRenamedByAnOutdatedRing: what it says of a removal may have been undone since, and what it
// says of a key may be of before its removal.
func TestI8NothingIsRenamedByAnOutdatedRing(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]struct {
		snapshotFirst bool // the ring of the restart knows the key that is removed by then
	}{
		"a file that was set aside stays aside":  {snapshotFirst: true},
		"the file of a removed key stays a file": {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Raft: func(conf *raft.Config) { conf.TrailingLogs = 0 }})
				keyringtest.Ready(t, c)
				keyringtest.MakeLeader(t, c, c.Server("s1"))
				gone := c.Server("s1").Keyring.Keys()[0].ID
				keyringtest.RotateWhenReady(t, c)
				keyringtest.AwaitKeys(t, c)
				s3 := c.Server("s3")
				snapshot := func() {
					if err := s3.Raft.Snapshot().Error(); err != nil {
						t.Fatal(err)
					}
				}
				if when.snapshotFirst {
					snapshot()
				} else {
					c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
						if e.Server == s3 && e.Kind == "disk" && strings.Contains(e.What, gone.String()) {
							return keyringtest.Reply{Err: errors.New("the file can't be set aside")}
						}
						return keyringtest.Reply{}
					})
				}
				if err := c.Server("s1").Keyring.Remove(t.Context(), gone, keyring.RemoveOptions{Force: true}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if !when.snapshotFirst {
					snapshot()
				}
				before := s3.Disk.Names()
				if live := slices.Contains(before, gone.String()+".nks.json"); live == when.snapshotFirst {
					t.Fatalf("the keystore has %q", before)
				}
				startOutdated(t, c, s3, gone, before)
			})
		})
	}
}

// startOutdated starts s3 apart from the others, when it renames nothing, and then lets it catch up.
func startOutdated(t *testing.T, c *keyringtest.Cluster, s3 *keyringtest.Server, gone keyring.KeyID, before []string) {
	t.Helper()
	c.Stop(s3)
	c.OnEvent(nil)
	c.Partition(s3)
	c.Start(s3)
	c.Partition(s3)
	time.Sleep(10 * time.Minute)
	if after := s3.Disk.Names(); !slices.Equal(after, before) {
		t.Errorf("the keystore has %q, and had %q", after, before)
	}
	c.Partition()
	keyringtest.Ready(t, c)
	time.Sleep(10 * time.Minute)
	if after := s3.Disk.Names(); slices.Contains(after, gone.String()+".nks.json") {
		t.Errorf("it has caught up, and has %q", after)
	}
}

// TestJWKSOfAServerWithoutALeaderIsCachedForLessAndThenNotShown: together with the time for which it is cached it
// is never older than it may be, and a key that was revoked elsewhere is not shown for ever.
func TestJWKSOfAServerWithoutALeaderIsCachedForLessAndThenNotShown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		s := keyringtest.Follower(c)
		c.Partition(s)
		lost := time.Now()
		for _, tt := range []struct {
			after time.Duration
			code  int
			want  string
		}{
			{5 * time.Second, 200, "public, max-age=300"}, // as long as an election takes
			{time.Minute + time.Second/2, 200, "public, max-age=239"},
			{6 * time.Minute, 200, "public, max-age=0"},
			{2 * time.Hour, 503, "no-store"},
		} {
			time.Sleep(tt.after - time.Since(lost))
			w := wellKnown(s)
			if got := w.Header().Get("Cache-Control"); w.Code != tt.code || got != tt.want {
				t.Errorf("after %v: %d, %q, want %d, %q", tt.after, w.Code, got, tt.code, tt.want)
			}
		}
		if len(keyringtest.Problems(t, s, keyring.ProblemNoLeader)) != 1 || keyringtest.StatusOf(t, s).Leader != "" {
			t.Errorf("%v", keyringtest.StatusOf(t, s))
		}
		c.Partition()
		keyringtest.Ready(t, c)
		time.Sleep(time.Minute)
		if w := wellKnown(s); w.Code != 200 || w.Header().Get("Cache-Control") != "public, max-age=300" {
			t.Errorf("%d, %q", w.Code, w.Header().Get("Cache-Control"))
		}
		if got := keyringtest.Problems(t, s, keyring.ProblemNoLeader); len(got) > 0 {
			t.Errorf("%v", got)
		}
	})
}

// TestWhatIsMissingIsReadOnce: what was missing when WaitReady looked is not taken for nothing because it has
// come by the time that it is told.
func TestWhatIsMissingIsReadOnce(t *testing.T) {
	h := keyringtest.NewHosts(t, 2)[0] // the other does not answer: there is never a leader
	h.Open(t, nil)
	empty := keyringtest.SnapshotOf(t, h.FSM)
	newer := &raft.Log{Index: 1, Type: raft.LogCommand, Extensions: []byte(keyringtest.Extensions)}
	newer.Data = fmt.Appendf(nil, `{"version":%d,"commands":[{"melt":{}}]}`, meta.This.Version+1)
	over, cancel := context.WithCancel(t.Context())
	cancel() // one look
	var stop atomic.Bool
	var comesAndGoes sync.WaitGroup
	comesAndGoes.Go(func() { // what raft would have the FSM do, if it did anything
		for !stop.Load() {
			if err, ok := h.FSM.Apply(newer).(error); !ok || !errors.Is(err, meta.ErrVersion) {
				t.Errorf("an entry of a newer build: %v", err)
			}
			if err := keyringtest.RestoreFSM(h.FSM, empty); err != nil {
				t.Error(err)
			}
		}
	})
	for range 100_000 {
		if err := h.Keyring.WaitReady(over); !errors.Is(err, keyring.ErrNotReady) {
			t.Errorf("without a leader it is ready: %v", err)
			break
		}
	}
	stop.Store(true)
	comesAndGoes.Wait()
}
