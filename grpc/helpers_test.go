package keyringgrpc_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	keyringgrpc "example.com/keyring/grpc"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// lines is a log that a test can wait on.
type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

// wait returns the line that has the words. Two minutes, which are virtual in a bubble, are enough in any case.
func (l lines) wait(want string) string {
	late := time.After(2 * time.Minute)
	for {
		select {
		case line := <-l:
			if says(line, want) {
				return line
			}
		case <-late:
			panic("the log does not say: " + want)
		}
	}
}

// says reports whether a text has the words, which may be quoted in it.
func says(text, words string) bool {
	return strings.Contains(strings.ReplaceAll(text, `\"`, `"`), words)
}

// cluster is who the members of a test are, and where.
type cluster struct {
	t  *testing.T
	ca *ca

	onlyMembers []string // for ServerOptions

	mu      sync.Mutex // guards below
	servers []raft.Server
}

func newCluster(t *testing.T) *cluster { return &cluster{t: t, ca: newCA()} }

func (c *cluster) members() []raft.Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.servers)
}

// set adds a member, or gives it another address.
func (c *cluster) set(id raft.ServerID, addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers = slices.DeleteFunc(c.servers, func(s raft.Server) bool { return s.ID == id })
	c.servers = append(c.servers, raft.Server{ID: id, Address: raft.ServerAddress(addr)})
}

func (c *cluster) remove(id raft.ServerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers = slices.DeleteFunc(c.servers, func(s raft.Server) bool { return s.ID == id })
}

// keys stands in for a Keyring.
type keys struct {
	answer  func(ctx context.Context, from raft.ServerID, request []byte) ([]byte, error)
	changed atomic.Pointer[chan struct{}]
	version atomic.Uint64
	leads   atomic.Pointer[func(context.Context) error] // PromoteServers of a leader
}

func newKeys(answer func(ctx context.Context, from raft.ServerID, request []byte) ([]byte, error)) *keys {
	k := &keys{answer: answer}
	next := make(chan struct{})
	k.changed.Store(&next)
	return k
}

func (k *keys) ServePeer(ctx context.Context, from raft.ServerID, request []byte) ([]byte, error) {
	return k.answer(ctx, from, request)
}

func (k *keys) Changed() <-chan struct{} { return *k.changed.Load() }

func (k *keys) MembershipVersion() uint64 { return k.version.Load() }

func (k *keys) Leading() error {
	if k.leads.Load() == nil {
		return keyring.ErrNotLeader
	}
	return nil
}

func (k *keys) PromoteServers(ctx context.Context) error { return (*k.leads.Load())(ctx) }

// change tells of a change of members.
func (k *keys) change() {
	k.version.Add(1)
	next := make(chan struct{})
	close(*k.changed.Swap(&next))
}

// echo answers with who asks, and what.
func echo(_ context.Context, from raft.ServerID, request []byte) ([]byte, error) {
	return fmt.Appendf(nil, "%s: %s", from, request), nil
}

// port is the port of one server of a cluster, with a service for clients.
type port struct {
	*keyringgrpc.Peers
	addr string
	told lines
	keys *keys
	grpc *grpc.Server
}

// port starts the port of a server, which is a member and answers with echo. Change alters the configuration before.
func (c *cluster) port(id raft.ServerID, change ...func(*keyringgrpc.Config)) *port {
	c.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	p := c.portOn(ln, ln.Addr().String(), id, change...)
	c.set(id, p.addr)
	return p
}

// portOn is port on a listener. The server is not a member yet.
func (c *cluster) portOn(ln net.Listener, addr string, id raft.ServerID, change ...func(*keyringgrpc.Config)) *port {
	c.t.Helper()
	p := &port{addr: addr, told: make(lines, 1000), keys: newKeys(echo)}
	cfg := keyringgrpc.Config{
		ID: id, Cluster: "prod", Addr: addr, TLS: c.ca.server(string(id)), Logger: hclog.New(&hclog.LoggerOptions{Output: p.told}),
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if p.Peers, err = keyringgrpc.New(cfg); err != nil {
		c.t.Fatal(err)
	}
	p.grpc = grpc.NewServer(p.ServerOptions(c.onlyMembers...)...)
	p.Register(p.grpc)
	grpc_health_v1.RegisterHealthServer(p.grpc, health.NewServer())
	registerWho(p)
	p.AttachTo(c.members)
	p.StartFor(p.keys)
	served := make(chan struct{})
	go func() { p.grpc.Serve(ln); close(served) }()
	c.t.Cleanup(func() { p.Close(); p.grpc.Stop(); <-served })
	return p
}

// withClients lets clients in, without certificates.
func withClients(cfg *keyringgrpc.Config) { cfg.Clients = cfg.TLS }

// noLeak fails the test if goroutines that it has started are left after its other cleanups.
func noLeak(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for range 1_000_000 {
			if runtime.NumGoroutine() <= before {
				return
			}
			runtime.Gosched()
		}
		b := make([]byte, 1<<20)
		t.Errorf("goroutines left:\n%s", b[:runtime.Stack(b, true)])
	})
}

// closed waits until the other end of a connection closes it.
func closed(t *testing.T, c net.Conn) error {
	t.Helper()
	b, err := io.ReadAll(c)
	if len(b) > 0 {
		t.Errorf("read %q, want the connection closed", b)
	}
	return err
}
