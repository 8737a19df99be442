package keyringtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Logger logs to standard error if KEYRING_LOG names a level.
func Logger() hclog.Logger {
	level := os.Getenv("KEYRING_LOG")
	if level == "" {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.LevelFromString(level)})
}

// UntilKilled is for waits on real servers, which take what a loaded machine takes: it ends just before
// the test binary would be killed, so that a wait without an end says what it was for.
func UntilKilled(tb testing.TB) context.Context {
	limited, ok := tb.(interface{ Deadline() (time.Time, bool) })
	if !ok {
		return tb.Context()
	}
	end, ok := limited.Deadline()
	if !ok {
		return tb.Context()
	}
	ctx, cancel := context.WithDeadline(tb.Context(), end.Add(-10*time.Second))
	tb.Cleanup(cancel)
	return ctx
}

// Nodes is a cluster of real Nodes on loopback.
type Nodes struct {
	TB    testing.TB
	CA    *CA
	Addrs map[raft.ServerID]string
	Nodes map[raft.ServerID]*node.Node
	Dirs  map[raft.ServerID]string
	KEKs  map[raft.ServerID][]keyring.KEK
}

// NewNodes returns n servers s1, s2, … that are not started, and their listeners.
func NewNodes(tb testing.TB, n int) (*Nodes, map[raft.ServerID]net.Listener) {
	tb.Helper()
	c := &Nodes{
		TB: tb, CA: NewCA(tb),
		Addrs: map[raft.ServerID]string{}, Nodes: map[raft.ServerID]*node.Node{}, Dirs: map[raft.ServerID]string{},
		KEKs: map[raft.ServerID][]keyring.KEK{},
	}
	listeners := map[raft.ServerID]net.Listener{}
	for i := range n {
		id := raft.ServerID(fmt.Sprintf("s%d", i+1))
		listeners[id] = Listen(tb)
		c.Addrs[id] = listeners[id].Addr().String()
		c.Dirs[id] = tb.TempDir()
	}
	return c, listeners
}

// StartNodes bootstraps a cluster of n servers with mutual TLS, bolt and real directories. change may be nil.
func StartNodes(tb testing.TB, n int, change func(*node.Config)) *Nodes {
	tb.Helper()
	c, listeners := NewNodes(tb, n)
	tb.Cleanup(c.Close) // before their directories are removed
	ctx := UntilKilled(tb)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for id, ln := range listeners {
		cfg := c.Config(id)
		cfg.Listener, cfg.Peers = ln, maps.Clone(c.Addrs)
		if change != nil {
			change(&cfg)
		}
		c.KEKs[id] = cfg.KEKs
		wg.Go(func() {
			n, err := node.Start(ctx, cfg)
			if err != nil {
				tb.Errorf("%s: %v", id, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			c.Nodes[id] = n
		})
	}
	wg.Wait()
	if tb.Failed() {
		tb.FailNow()
	}
	return c
}

// Config is the configuration of a server.
func (c *Nodes) Config(id raft.ServerID) node.Config {
	return node.Config{
		ID: id, Dir: c.Dirs[id], Addr: c.Addrs[id], Cluster: "test",
		TLS:  c.CA.Source("keyring://test/server/"+string(id), nil),
		KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
		Logger: Logger().Named(string(id)),
	}
}

// Close closes all servers.
func (c *Nodes) Close() {
	for id, n := range c.Nodes {
		if err := n.Close(); err != nil {
			c.TB.Errorf("%s: %v", id, err)
		}
	}
}

// Ready waits until every server is ready.
func (c *Nodes) Ready(ctx context.Context) {
	c.TB.Helper()
	for id, n := range c.Nodes {
		if err := n.Keyring().WaitReady(ctx); err != nil {
			c.TB.Fatalf("%s: %v", id, err)
		}
	}
}

// Newcomer is the configuration of a further server, which knows two of the others.
func (c *Nodes) Newcomer(id raft.ServerID) node.Config {
	ln := Listen(c.TB)
	c.Addrs[id], c.Dirs[id] = ln.Addr().String(), c.TB.TempDir()
	cfg := c.Config(id)
	cfg.Listener, cfg.Join = ln, []string{"s1@" + c.Addrs["s1"], "s2@" + c.Addrs["s2"]}
	return cfg
}

// Start starts a server and waits until it holds every key and votes.
func (c *Nodes) Start(ctx context.Context, cfg node.Config) *node.Node {
	c.TB.Helper()
	n, err := node.Start(ctx, cfg)
	if err != nil {
		c.TB.Fatal(err)
	}
	c.Nodes[cfg.ID] = n
	c.AwaitVote(ctx, n, cfg.ID)
	return n
}

// Restart closes a server and starts it on the same directory and address.
func (c *Nodes) Restart(ctx context.Context, id raft.ServerID) {
	c.TB.Helper()
	old := c.Nodes[id]
	delete(c.Nodes, id)
	if err := old.Close(); err != nil {
		c.TB.Fatal(err)
	}
	cfg := c.Config(id)
	cfg.KEKs = c.KEKs[id]
	n, err := node.Start(ctx, cfg)
	if err != nil {
		c.TB.Fatalf("%s: %v", id, err)
	}
	c.Nodes[id] = n
}

// Move starts a server that was closed, under another address.
func (c *Nodes) Move(ctx context.Context, id raft.ServerID) {
	c.TB.Helper()
	ln := Listen(c.TB)
	c.Addrs[id] = ln.Addr().String()
	cfg := c.Config(id)
	cfg.Listener = ln
	n, err := node.Start(ctx, cfg)
	if err != nil {
		c.TB.Fatal(err)
	}
	c.Nodes[id] = n
}

// Expel removes a server and stops it. There are three.
func (c *Nodes) Expel(ctx context.Context, id raft.ServerID) {
	c.TB.Helper()
	if err := c.Nodes[Besides(id)].RemoveServer(ctx, id, keyring.RemoveServerOptions{}); err != nil {
		c.TB.Fatal(err)
	}
	if err := c.Nodes[id].Close(); err != nil {
		c.TB.Error(err)
	}
	delete(c.Nodes, id)
}

// Besides is one of the servers s1, s2 and s3 that is not that one.
func Besides(id raft.ServerID) raft.ServerID {
	return map[raft.ServerID]raft.ServerID{"s1": "s2", "s2": "s3", "s3": "s1"}[id]
}

// Impostor bootstraps another cluster at an address, with the certificate that a removed server had, and
// adds those servers.
func (c *Nodes) Impostor(ctx context.Context, id raft.ServerID, addr string, admits ...raft.ServerID) *node.Node {
	c.TB.Helper()
	cfg := c.Config(id)
	cfg.Dir, cfg.Addr, cfg.Peers = c.TB.TempDir(), addr, map[raft.ServerID]string{id: addr}
	var err error
	if cfg.Listener, err = net.Listen("tcp", addr); err != nil {
		c.TB.Fatal(err)
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		c.TB.Fatal(err)
	}
	c.TB.Cleanup(func() { n.Close() })
	if err := n.Keyring().WaitReady(ctx); err != nil {
		c.TB.Fatal(err)
	}
	for _, id := range admits {
		if err := n.AddServer(ctx, id, c.Addrs[id]); err != nil {
			c.TB.Fatal(err)
		}
	}
	return n
}

// Await waits until a server's own status is as wanted.
func (c *Nodes) Await(ctx context.Context, n *node.Node, what string, wanted func(keyring.Status) bool) {
	c.TB.Helper()
	for {
		changed := n.Keyring().Changed()
		st, err := n.Keyring().Status(ctx)
		if err != nil {
			c.TB.Fatal(err)
		}
		if wanted(st) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.TB.Fatalf("never %s: %+v", what, st)
		}
	}
}

// AwaitVote waits until a server holds every key and votes.
func (c *Nodes) AwaitVote(ctx context.Context, n *node.Node, id raft.ServerID) {
	c.TB.Helper()
	c.Await(ctx, n, "a voter", func(st keyring.Status) bool {
		for _, s := range st.Servers {
			if s.ID == id {
				return s.Suffrage == raft.Voter && len(st.Missing) == 0
			}
		}
		return false
	})
}

// AwaitAddress waits until the configuration that a server has says where another is.
func (c *Nodes) AwaitAddress(ctx context.Context, n *node.Node, id raft.ServerID) {
	c.TB.Helper()
	want := raft.Server{ID: id, Address: raft.ServerAddress(c.Addrs[id])}
	c.Await(ctx, n, "told where "+string(id)+" is", func(st keyring.Status) bool { return slices.Contains(st.Servers, want) })
}

// AwaitHolders waits until n servers are recorded as holders of the key.
func AwaitHolders(k *keyring.Keyring, id keyring.KeyID, n int) {
	for {
		changed := k.Changed()
		for _, key := range k.Keys() {
			if key.ID == id && len(key.Holders) >= n {
				return
			}
		}
		<-changed
	}
}

// Settled waits until each server has the right address of each, and a rotation has come through.
func (c *Nodes) Settled(ctx context.Context) {
	c.TB.Helper()
	for id, n := range c.Nodes {
		c.Await(ctx, n, "with the present addresses", func(st keyring.Status) bool {
			return !slices.ContainsFunc(st.Servers, func(s raft.Server) bool { return string(s.Address) != c.Addrs[s.ID] })
		})
		if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			c.TB.Errorf("%s: %v", id, err)
		}
	}
	for _, n := range c.Nodes {
		AwaitHolders(n.Keyring(), n.Keyring().Keys()[0].ID, len(c.Nodes))
	}
}

// Mute has a server be there that answers no call before stop. It tells the path of each.
func (c *Nodes) Mute(id raft.ServerID, called chan<- string) (addr string, stop func()) {
	ln := Listen(c.TB)
	return ln.Addr().String(), c.Pose(id, ln, func(ctx context.Context, _ peer.Identity, path string, _ []byte) ([]byte, error) {
		called <- path
		<-ctx.Done()
		return nil, ctx.Err()
	})
}

// Pose answers the calls of a server that is not there. Raft does not run.
func (c *Nodes) Pose(id raft.ServerID, ln net.Listener, answer peer.Handler) (stop func()) {
	c.TB.Helper()
	conf, err := peer.ServerConfig(c.CA.Source("keyring://test/server/"+string(id), nil), "test",
		func(peer.Identity, string) error { return nil }, peer.ALPNRaft, peer.ALPNPeer)
	if err != nil {
		c.TB.Fatal(err)
	}
	port := peer.Listen(ln, peer.PortOptions{TLS: conf})
	server := peer.Serve(port.Listener(peer.ALPNPeer), answer, peer.ServerOptions{})
	return func() { port.Close(); server.Close() }
}

// RaftTransport speaks raft's protocol to a server with the certificate of another one.
func (c *Nodes) RaftTransport(as, to raft.ServerID) *raft.NetworkTransport {
	dialer := &peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/"+string(as), nil)}
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: asMember{dialer, string(to)}, MaxPool: 1, Timeout: 5 * time.Second})
}

// asMember is a StreamLayer with the certificate of a member.
type asMember struct {
	dialer *peer.Dialer
	server string
}

func (l asMember) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return l.dialer.Dial(ctx, l.server, string(addr), peer.ALPNRaft)
}
func (asMember) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (asMember) Close() error              { return nil }
func (asMember) Addr() net.Addr            { return &net.TCPAddr{} }

// Depose has another server stand for election at once, against a leader that knows nothing of it. There are three.
func (c *Nodes) Depose(leader raft.ServerID) error {
	to := Besides(leader)
	trans := c.RaftTransport(leader, to)
	defer trans.Close()
	q := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(leader)}}
	return trans.TimeoutNow(to, raft.ServerAddress(c.Addrs[to]), q, new(raft.TimeoutNowResponse))
}

// CallAs makes a call with the certificate of a server, over a new connection.
func (c *Nodes) CallAs(ctx context.Context, as, to raft.ServerID, path string, body []byte) ([]byte, error) {
	client := peer.NewClient(&peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/"+string(as), nil)})
	defer client.Close()
	return client.Call(ctx, string(to), c.Addrs[to], path, body)
}

// ReadyNodes starts n servers and waits until they are ready. It returns something that they have encrypted.
func ReadyNodes(tb testing.TB, n int) (ctx context.Context, c *Nodes, hello []byte) {
	tb.Helper()
	ctx = UntilKilled(tb)
	c = StartNodes(tb, n, nil)
	c.Ready(ctx)
	hello, err := c.Nodes["s1"].Encrypt(ctx, []byte("hello"), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return ctx, c, hello
}

// JoinToken has a node make a join token for that server.
func JoinToken(tb testing.TB, n *node.Node, id raft.ServerID, ttl time.Duration) string {
	tb.Helper()
	token, err := n.JoinToken(id, ttl)
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

// NullFSM is a host's FSM that does nothing.
type NullFSM struct{}

// Apply implements raft.FSM.
func (NullFSM) Apply(*raft.Log) any { return nil }

// Snapshot implements raft.FSM.
func (NullFSM) Snapshot() (raft.FSMSnapshot, error) { return NullFSM{}, nil }

// Restore implements raft.FSM.
func (NullFSM) Restore(io.ReadCloser) error { return nil }

// Persist implements raft.FSMSnapshot.
func (NullFSM) Persist(sink raft.SnapshotSink) error { return sink.Close() }

// Release implements raft.FSMSnapshot.
func (NullFSM) Release() {}

// WantClosed waits until the other sides have closed connections.
func WantClosed(ctx context.Context, t testing.TB, conns []*peer.Conn) {
	t.Helper()
	deadline, _ := ctx.Deadline()
	for _, conn := range conns {
		if err := conn.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the connection to %s for %s is open: %v", conn.Identity().ID, conn.ConnectionState().NegotiatedProtocol, err)
		}
	}
}

// StartAlone starts a cluster of one.
func StartAlone(t *testing.T, ctx context.Context, dir string, keks, old []keyring.KEK) *node.Node {
	t.Helper()
	n, err := node.Start(ctx, node.Config{
		Dir: dir, KEKs: keks, OldKEKs: old, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}
