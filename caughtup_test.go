package keyring_test

import (
	"context"
	"errors"
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
	"example.com/keyring/internal/peer"
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
		unknown := slices.Clone(sealed)
		unknown[1] ^= 1
		if _, err := s3.Keyring.Decrypt(unknown, nil); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("Decrypt of an unknown key: %v", err)
		}
	})
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
			})
		})
	}
}

// TestFollowerCatchesUpWithTheFSMAndNotWithRaft: raft counts as applied what it has handed to an FSM that may
// take its time. A server whose host's Apply is slow has not caught up before that is done.
func TestFollowerCatchesUpWithTheFSMAndNotWithRaft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var gates gates
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: gates.app})
		leader := keyringtest.Ready(t, c)
		slow := keyringtest.Follower(c)
		c.Stop(slow)
		open := gates.shut(slow.ID)
		if err := leader.Raft.Apply([]byte("slow"), time.Minute).Error(); err != nil {
			t.Fatal(err)
		}
		key := keyringtest.RotateWhenReady(t, liveBut(c, slow))
		c.Start(slow)
		time.Sleep(time.Minute)
		if slow.Raft.AppliedIndex() < keyring.LastEntry(leader.FSM) {
			t.Fatal("raft has not handed on the entries")
		}
		if keyringtest.StatusOf(t, slow).CaughtUp {
			t.Error("it has caught up, and its FSM has yet to apply what raft has handed to it")
		}
		open()
		keyringtest.Ready(t, c)
		if !keyringtest.StatusOf(t, slow).CaughtUp || slow.Keyring.Keys()[0].ID != key.ID {
			t.Error("it has not caught up")
		}
	})
}

// TestFollowerOfAnOlderLeaderCatchesUpByWhatItHears: a build that does not know the question refuses it.
func TestFollowerOfAnOlderLeaderCatchesUpByWhatItHears(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.RotateWhenReady(t, c)
		s := keyringtest.Follower(c)
		refusal, err := peer.Response{Refusal: &peer.Refusal{Code: peer.Unsupported}}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Kind == "call" && strings.Contains(e.What, `"state"`) {
				asked++
				return keyringtest.Reply{Data: refusal}
			}
			return keyringtest.Reply{}
		})
		c.Restart(s)
		keyringtest.Ready(t, c)
		c.OnEvent(nil)
		if !keyringtest.StatusOf(t, s).CaughtUp || asked == 0 {
			t.Errorf("caught up %t, asked %d times", keyringtest.StatusOf(t, s).CaughtUp, asked)
		}
	})
}

// olderLeader has a server take every other one for a build that does not know the question.
func olderLeader(e keyringtest.Event) (keyringtest.Reply, bool) {
	if e.Kind != "call" || !strings.Contains(e.What, `"state"`) {
		return keyringtest.Reply{}, false
	}
	b, err := peer.Response{Refusal: &peer.Refusal{Code: peer.Unsupported}}.Encode()
	return keyringtest.Reply{Data: b, Err: err}, true
}

// TestFollowerOfAnOlderLeaderHasNotCaughtUpByHeartbeats: they tell who leads, and nothing of what is committed.
func TestFollowerOfAnOlderLeaderHasNotCaughtUpByHeartbeats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		s := keyringtest.Follower(c)
		c.Stop(s)
		key := keyringtest.RotateWhenReady(t, c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if r, ok := olderLeader(e); ok {
				return r
			}
			if e.Server == s && e.Kind == "log" {
				return keyringtest.Reply{Err: errors.New("nothing is replicated")}
			}
			return keyringtest.Reply{}
		})
		c.Restart(s)
		time.Sleep(time.Minute)
		if _, leader := s.Raft.LeaderWithID(); leader == "" || s.Raft.CommitIndex() > 0 {
			t.Fatalf("leader %q, committed %d", leader, s.Raft.CommitIndex())
		}
		if st := keyringtest.StatusOf(t, s); st.CaughtUp {
			t.Error("it has caught up, and has been told nothing of what is committed")
		}
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply { r, _ := olderLeader(e); return r })
		keyringtest.Ready(t, c)
		if st := keyringtest.StatusOf(t, s); !st.CaughtUp || st.Active != key.ID {
			t.Errorf("%+v", st)
		}
	})
}

// TestFollowerOfAnOlderLeaderCatchesUpThoughItsLogWasReplacedByLess: what it had at Open is never committed.
func TestFollowerOfAnOlderLeaderCatchesUpThoughItsLogWasReplacedByLess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		s := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		c.Partition(s)
		for range 1000 {
			s.Raft.Barrier(0) // nobody takes it
		}
		synctest.Wait()
		had := s.Raft.LastIndex()
		c.Stop(s)
		c.Leader()
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply { r, _ := olderLeader(e); return r })
		c.Partition()
		c.Restart(s)
		time.Sleep(time.Minute)
		if last := s.Raft.LastIndex(); last >= had {
			t.Fatalf("its log had %d entries and has %d", had, last)
		}
		if !keyringtest.StatusOf(t, s).CaughtUp {
			t.Error("it has not caught up")
		}
	})
}

// TestFollowerCatchesUpWithALeaderWhoseFSMLags: the leader can't confirm that it leads before its FSM has
// applied what came before, and that takes longer than another call may.
func TestFollowerCatchesUpWithALeaderWhoseFSMLags(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lagging atomic.Pointer[keyringtest.Server]
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: func(s *keyringtest.Server) raft.FSM {
			return laggingApp{&keyringtest.App{}, func() bool { return lagging.Load() == s }}
		}})
		leader := keyringtest.Ready(t, c)
		s := keyringtest.Follower(c)
		lagging.Store(leader)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server == leader && e.Kind == "answer" && strings.Contains(e.What, `"state"`) {
				leader.Raft.Apply([]byte("slow"), 0)
			}
			return keyringtest.Reply{}
		})
		c.Restart(s)
		time.Sleep(time.Minute)
		if !keyringtest.StatusOf(t, s).CaughtUp {
			t.Error("it has not caught up")
		}
		c.OnEvent(nil)
		keyringtest.Ready(t, c)
	})
}

// laggingApp takes five seconds for an entry, while it lags.
type laggingApp struct {
	*keyringtest.App
	lags func() bool
}

func (a laggingApp) Apply(l *raft.Log) any {
	if a.lags() {
		time.Sleep(5 * time.Second)
	}
	return a.App.Apply(l)
}

// TestFollowerThatAskedBeforeTheFirstEntryCatchesUp: when the answer arrives, there is one.
func TestFollowerThatAskedBeforeTheFirstEntryCatchesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		var late atomic.Int32
		began := time.Now()
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			switch {
			case time.Since(began) > time.Minute:
			case time.Since(began) < 10*time.Second && strings.Contains(e.What, `"state"`):
				return keyringtest.Reply{Err: errors.New("not yet")} // nor does the leader lead
			case e.Kind == "call" && strings.Contains(e.What, `"hello"`): // without which there is no first entry
				return keyringtest.Reply{Err: errors.New("not yet")}
			case e.Kind == "called" && strings.Contains(e.What, `"state"`):
				late.Add(1)
				time.Sleep(time.Minute)
			}
			return keyringtest.Reply{}
		})
		keyringtest.Ready(t, c)
		c.OnEvent(nil)
		if late.Load() < 2 {
			t.Errorf("%d questions", late.Load())
		}
		time.Sleep(time.Minute) // virtual: Close does not wait that long for answers that are late
	})
}

// TestRestartedClusterCatchesUpFromItsSnapshots: no FSM has seen an entry of the keyring's, only its snapshot.
func TestRestartedClusterCatchesUpFromItsSnapshots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Raft: func(conf *raft.Config) { conf.TrailingLogs = 0 }})
		key := keyringtest.RotateWhenReady(t, c)
		keyringtest.AwaitHolders(keyringtest.Ready(t, c).Keyring, key.ID, 3)
		time.Sleep(time.Minute)
		for _, s := range c.Servers {
			if err := s.Raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range c.Servers {
			c.Stop(s)
		}
		for _, s := range c.Servers {
			c.Start(s)
			if entry := keyring.LastEntry(s.FSM); entry > 0 {
				t.Errorf("%s has entry %d beside its snapshot", s.ID, entry)
			}
		}
		keyringtest.Ready(t, c)
		for _, s := range c.Servers {
			if st := keyringtest.StatusOf(t, s); !st.CaughtUp || st.Active != key.ID {
				t.Errorf("%s: %+v", s.ID, st)
			}
		}
	})
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

// TestI4NewLeaderSealsUnderNoKeyThatWasRetiredBeforeItsTerm: a call that comes in before the new leader has
// applied what the old one has committed may go on after that.
func TestI4NewLeaderSealsUnderNoKeyThatWasRetiredBeforeItsTerm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var gates gates
		var mu sync.Mutex
		lookUps := map[raft.ServerID]func(){}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: gates.app, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			keyring.OnLookUp(cfg, func() {
				mu.Lock()
				do := lookUps[s.ID]
				mu.Unlock()
				if do != nil {
					do()
				}
			})
		}})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		retired := leader.Keyring.Keys()[0].ID
		next := keyringtest.Follower(c)
		open := gates.shut(next.ID)
		if err := leader.Raft.Apply([]byte("slow"), time.Minute).Error(); err != nil {
			t.Fatal(err)
		}
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := leader.Raft.LeadershipTransferToServer(next.ID, raft.ServerAddress(next.ID)).Error(); err != nil {
			t.Fatal(err)
		}
		for next.Raft.State() != raft.Leader {
			time.Sleep(time.Millisecond)
		}
		called := false
		mu.Lock()
		lookUps[next.ID] = func() {
			if !called {
				called = true
				open()
				time.Sleep(time.Second) // in which it applies what was committed, and its barrier
			}
		}
		mu.Unlock()
		sealed, err := next.Keyring.Encrypt([]byte("x"), nil)
		if id, _ := keyring.CiphertextKeyID(sealed); err == nil && id == retired {
			t.Errorf("sealed under %s, which was retired before", id)
		}
		if !called {
			t.Error("the call did not come in between")
		}
	})
}

// gates make hosts' FSMs that can be stopped.
type gates struct {
	mu      sync.Mutex // guards below
	shutFor map[raft.ServerID]chan struct{}
}

func (g *gates) app(s *keyringtest.Server) raft.FSM { return &gatedApp{&keyringtest.App{}, g, s.ID} }

// shut stops a server's FSM at its next entry, until open is called.
func (g *gates) shut(id raft.ServerID) (open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shutFor == nil {
		g.shutFor = map[raft.ServerID]chan struct{}{}
	}
	gate := make(chan struct{})
	g.shutFor[id] = gate
	return sync.OnceFunc(func() {
		g.mu.Lock()
		delete(g.shutFor, id)
		g.mu.Unlock()
		close(gate)
	})
}

type gatedApp struct {
	*keyringtest.App
	gates *gates
	id    raft.ServerID
}

func (a *gatedApp) Apply(l *raft.Log) any {
	a.gates.mu.Lock()
	gate := a.gates.shutFor[a.id]
	a.gates.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return a.App.Apply(l)
}

// TestWhatIsMissingIsReadOnce: what was missing when WaitReady looked is not taken for nothing because it has
// come by the time that it is told.
func TestWhatIsMissingIsReadOnce(t *testing.T) {
	h := keyringtest.NewHosts(t, 2)[0] // the other does not answer: there is never a leader
	h.Open(t, nil)
	over, cancel := context.WithCancel(t.Context())
	cancel() // one look
	var stop atomic.Bool
	var comesAndGoes sync.WaitGroup
	comesAndGoes.Go(func() {
		for i := uint64(0); !stop.Load(); i++ {
			keyring.SetMissed(h.FSM, i%2)
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
