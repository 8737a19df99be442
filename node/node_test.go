package node_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

func TestNodeAloneKeepsItsKeysAcrossRestarts(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cfg := node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Logger: keyringtest.Logger()}
	var sealed [][]byte
	for range 3 {
		n, err := node.Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Keyring().WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		for _, c := range sealed {
			if got, err := n.Decrypt(ctx, c, nil); err != nil || string(got) != "data" {
				t.Errorf("%q, %v", got, err)
			}
		}
		c, err := n.Encrypt(ctx, []byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, c)
		if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNodeRotatesAsSoonAsItLeads: the call may come before this server has become the leader.
func TestNodeRotatesAsSoonAsItLeads(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	for range 3 {
		n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNodeAloneLeadsOnceItIsReady, at every start.
func TestNodeAloneLeadsOnceItIsReady(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for start := range 5 {
		n := startAlone(t, dir)
		if err := n.Keyring().WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Keyring().Encrypt(nil, nil); err != nil {
			t.Errorf("start %d: %v", start, err)
		}
		if err := node.SnapshotRaft(n); err != nil { // with it the next one has the key at once
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoBootstrapWhileAnInitialServerIsSilent, though a majority is there: the cluster may live on, with the
// silent one in it and these two wiped.
func TestNoBootstrapWhileAnInitialServerIsSilent(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(keyringtest.UntilKilled(t))
	defer cancel()
	c, listeners := keyringtest.NewNodes(t, 3)
	asked := make(chan string)
	defer c.Pose("s3", listeners["s3"], func(asking context.Context, from peer.Identity, _ string, _ []byte) ([]byte, error) {
		select {
		case asked <- from.ID:
		case <-asking.Done():
		}
		return nil, &peer.Refusal{Code: peer.NotReady}
	})()
	ended := make(chan error, 2)
	for _, id := range []raft.ServerID{"s1", "s2"} {
		cfg := c.Config(id)
		cfg.Listener, cfg.Peers = listeners[id], maps.Clone(c.Addrs)
		go func() {
			n, err := node.Start(ctx, cfg)
			if err == nil {
				n.Close()
			}
			ended <- err
		}()
	}
	// Both have asked all others some times, and had no answer of one of them.
	for times := map[string]int{}; times["s1"] < 4 || times["s2"] < 4; {
		select {
		case id := <-asked:
			times[id]++
		case err := <-ended:
			t.Fatalf("Start has ended: %v", err)
		}
	}
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Start: %v", err)
		}
	}
}

// TestWipedNodeJoinsAgain takes a server's directory away: it must not come back as the voter
// that it was.
func TestWipedNodeJoinsAgain(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	sealed, err := c.Nodes["s1"].Encrypt(ctx, []byte("hello"), nil)
	if err != nil {
		t.Fatal(err)
	}
	leader := c.Nodes["s1"].Leader()
	if err := c.Nodes[leader].Close(); err != nil {
		t.Fatal(err)
	}
	c.Dirs[leader] = t.TempDir()
	cfg := c.Config(leader)
	cfg.Peers = c.Addrs
	delete(c.Nodes, leader)
	fresh, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes[leader] = fresh
	c.Ready(ctx)
	if got, err := c.Nodes[leader].Keyring().Decrypt(sealed, nil); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	for id, n := range c.Nodes {
		if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestStartRefusesWhatCantWork(t *testing.T) {
	ca := keyringtest.NewCA(t)
	good := func() node.Config {
		return node.Config{
			ID: "s1", Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Addr: "127.0.0.1:1", Cluster: "test",
			TLS: ca.Source("keyring://test/server/s1", nil), Peers: map[raft.ServerID]string{"s1": "127.0.0.1:1"},
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*node.Config)
		want   []string
	}{
		{"nothing set", func(c *node.Config) { *c = node.Config{} }, []string{"Dir is empty"}},
		{"no KEK", func(c *node.Config) { *c = node.Config{Dir: c.Dir} }, []string{"KEKs is empty"}},
		{"no TLS, no cluster", func(c *node.Config) { c.TLS, c.Cluster = nil, "" }, []string{"TLS is nil", "Cluster is empty"}},
		{"peers without an address", func(c *node.Config) { c.Addr = "" }, []string{"Addr is empty"}},
		{"not among the peers", func(c *node.Config) { c.Peers = map[raft.ServerID]string{"s2": "x"} }, []string{"Peers does not name this server, s1"}},
		{"certificate of another server", func(c *node.Config) { c.TLS = ca.Source("keyring://test/server/s2", nil) }, []string{"keyring://test/server/s2", "keyring://test/server/s1"}},
		{"certificate of another role", func(c *node.Config) { c.TLS = ca.Source("keyring://test/client/s1", nil) }, []string{"keyring://test/client/s1"}},
		{"address that is not here", func(c *node.Config) {
			c.Addr = "192.0.2.1:1" // TEST-NET-1, RFC 5737: listened on, not dialled
			c.Peers = map[raft.ServerID]string{"s1": c.Addr}
		}, []string{"192.0.2.1:1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good()
			tt.change(&cfg)
			n, err := node.Start(t.Context(), cfg)
			if err == nil {
				n.Close()
				t.Fatal("started")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\ndoes not say %q", err, want)
				}
			}
		})
	}
}

// TestSecondProcessIsRefused starts a second server on the first one's directory.
func TestSecondProcessIsRefused(t *testing.T) {
	t.Parallel()
	cfg := node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}}
	n, err := node.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	second, err := node.Start(t.Context(), cfg)
	if err == nil {
		second.Close()
	}
	if err == nil || !strings.Contains(err.Error(), cfg.Dir) {
		t.Errorf("%v does not name %s", err, cfg.Dir)
	}
}

// slowApp is a host's FSM whose Apply waits.
type slowApp struct{ release chan struct{} }

func (a slowApp) Apply(*raft.Log) any               { <-a.release; return "done" }
func (slowApp) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.ErrUnsupported }
func (slowApp) Restore(r io.ReadCloser) error       { return r.Close() }

// TestApplyEndsWithItsContextAndWithClose: the App is stuck, so nothing is answered. When it is not
// any more, Close returns.
func TestApplyEndsWithItsContextAndWithClose(t *testing.T) {
	t.Parallel()
	app := slowApp{make(chan struct{})}
	n, err := node.Start(t.Context(), node.Config{
		Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, App: app,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	errs := make(chan error)
	apply := func(ctx context.Context) {
		_, err := n.Apply(ctx, nil)
		errs <- err
	}
	go apply(ctx)
	cancel(why)
	if err := <-errs; !errors.Is(err, why) {
		t.Errorf("%v, want what ended the context", err)
	}
	const calls = 50
	for range calls {
		go apply(t.Context())
	}
	closed := make(chan error)
	go func() { closed <- n.Close() }()
	for range calls {
		if err := <-errs; !errors.Is(err, keyring.ErrClosed) {
			t.Errorf("%v, want ErrClosed", err)
		}
	}
	close(app.release)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := n.Apply(t.Context(), nil); !errors.Is(err, keyring.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestAppThatHangs is named by Status, and Close gives it up, says so, and gives the directory back when it has come back.
func TestAppThatHangs(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		app := slowApp{make(chan struct{})}
		n, err := node.Start(t.Context(), node.Config{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, App: app})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Keyring().WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Apply(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		st, err := n.Keyring().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemHost }); i < 0 ||
			st.Problems[i].Severity != keyring.SeverityCritical || !strings.HasPrefix(st.Problems[i].Detail, "Apply of the host's FSM has not returned since") {
			t.Errorf("Status says %v", st.Problems)
		}
		began := time.Now()
		err = n.Close()
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "the App") || took > 35*time.Second {
			t.Errorf("Close took %v: %v", took, err)
		}
		close(app.release)
		synctest.Wait() // the test fails if a goroutine is left
	})
	closeNode(t, startAlone(t, dir))
}

// TestCloseWaitsForWhatRaftWasAsked closes a node under load: no call may be left unanswered by a raft
// that is shut down beneath it.
func TestCloseWaitsForWhatRaftWasAsked(t *testing.T) {
	for range 3 {
		app := slowApp{make(chan struct{})}
		close(app.release) // not slow at all
		n, err := node.Start(t.Context(), node.Config{
			Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, App: app,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Keyring().WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		var load sync.WaitGroup
		some := make(chan struct{}, 1000)
		for range 16 {
			load.Go(func() {
				for {
					_, err := n.Apply(t.Context(), nil)
					if errors.Is(err, keyring.ErrClosed) {
						return
					}
					if err != nil {
						t.Errorf("apply: %v", err)
					}
					select {
					case some <- struct{}{}:
					default:
					}
				}
			})
		}
		for range 100 {
			<-some
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		load.Wait()
		if strings.Contains(goroutines(), "node.(*Node).Apply") {
			t.Fatal("something still waits for raft's answer")
		}
	}
}
