package node_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring/internal/join"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// stopAt is a log that calls a function once it has a line with a text.
type stopAt struct {
	mu   sync.Mutex // guards below
	text string
	do   func()
	all  []string
}

func (s *stopAt) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, string(line))
	if strings.Contains(strings.ReplaceAll(string(line), `\"`, `"`), s.text) { // hclog quotes what has spaces
		s.do()
	}
	return len(line), nil
}

// wantWaits requires a start to wait for the others, to say in the log what for, and to have it in its error.
func wantWaits(t *testing.T, cfg node.Config, want string) {
	t.Helper()
	ctx, stop := context.WithCancel(keyringtest.UntilKilled(t))
	defer stop()
	log := &stopAt{text: want, do: stop}
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Warn})
	n, err := node.Start(ctx, cfg)
	if err == nil {
		closeNode(t, n)
		t.Fatal("it has found its cluster")
	}
	if !strings.Contains(err.Error(), want) || ctx.Err() == nil {
		t.Errorf("the error is %v, and the log %q, want %q", err, log.all, want)
	}
}

// TestStartSaysWhyTheOthersAreOfNoUse, in the log while it waits, and in its error.
func TestStartSaysWhyTheOthersAreOfNoUse(t *testing.T) {
	t.Parallel()
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	foreign := keyringtest.NewCA(t)
	for name, tt := range map[string]struct {
		change func(c *keyringtest.Nodes, s2 *node.Config) // of the server that is there already
		there  func(c *keyringtest.Nodes) string           // where s2 is looked for, if not at its address
		want   string
	}{
		"another CA": {change: func(c *keyringtest.Nodes, s2 *node.Config) {
			s2.TLS = foreign.Source("keyring://test/server/s2", nil)
		}, want: "another CA"},
		"another cluster": {change: func(c *keyringtest.Nodes, s2 *node.Config) {
			s2.TLS, s2.Cluster = c.CA.Source("keyring://staging/server/s2", nil), "staging"
		}, want: `cluster "staging", want "test"`},
		"another server": {change: func(c *keyringtest.Nodes, s2 *node.Config) {
			s2.ID, s2.TLS = "s3", c.CA.Source("keyring://test/server/s3", nil)
			s2.Peers = map[raft.ServerID]string{"s1": c.Addrs["s1"], "s3": s2.Addr}
		}, want: `server "s3", want "s2"`},
		"nobody": {there: func(c *keyringtest.Nodes) string {
			ln := keyringtest.Listen(t)
			defer ln.Close()
			return ln.Addr().String()
		}, want: "nothing listens there"},
		"plain HTTP": {there: func(c *keyringtest.Nodes) string { return web.Listener.Addr().String() }, want: "plain HTTP"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, listeners := keyringtest.NewNodes(t, 2)
			configs := map[raft.ServerID]node.Config{}
			for id, ln := range listeners {
				cfg := c.Config(id)
				cfg.Listener, cfg.Peers = ln, c.Addrs
				configs[id] = cfg
			}
			s1, s2 := configs["s1"], configs["s2"]
			if tt.there != nil {
				listeners["s2"].Close()
				s1.Peers = map[raft.ServerID]string{"s1": c.Addrs["s1"], "s2": tt.there(c)}
			} else {
				tt.change(c, &s2)
				begin(t.Context(), t, s2)
			}
			wantWaits(t, s1, tt.want)
		})
	}
}

// TestJoinSaysWhyTheOthersAreOfNoUse: one refuses, and one is not there.
func TestJoinSaysWhyTheOthersAreOfNoUse(t *testing.T) {
	t.Parallel()
	_, c, _ := keyringtest.ReadyNodes(t, 1)
	gone := keyringtest.Listen(t)
	gone.Close()
	c.Addrs["s2"] = gone.Addr().String()
	cfg := c.Newcomer("s4")
	cfg.JoinToken = join.New().Text()
	wantWaits(t, cfg, "s1@"+c.Addrs["s1"]+`: call /node/proof of server "s1"`)
	cfg.Listener = nil
	wantWaits(t, cfg, "s2@"+c.Addrs["s2"]+`: call /node/hello of server "s2": dial server "s2" at `+c.Addrs["s2"]+": nothing listens there")
	lone := c.Newcomer("s5") // asks one that waits itself
	s6 := c.Newcomer("s6")
	s6.Peers, s6.Join = map[raft.ServerID]string{"s6": s6.Addr, "s7": c.Addrs["s2"]}, nil
	begin(t.Context(), t, s6)
	lone.Join = []string{"s6@" + s6.Addr}
	wantWaits(t, lone, "belongs to no cluster yet")
}

// TestStartRefusesItsOwnCertificateAtOnce: no other server would accept it. ctx does not end.
func TestStartRefusesItsOwnCertificateAtOnce(t *testing.T) {
	t.Parallel()
	foreign := keyringtest.NewCA(t)
	for name, tt := range map[string]struct {
		tls  func(c *keyringtest.Nodes) func() (*tls.Config, error)
		want string
	}{
		"expired": {func(c *keyringtest.Nodes) func() (*tls.Config, error) {
			return c.CA.Source("keyring://test/server/s1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}, "own certificate expired at"},
		"not yet valid": {func(c *keyringtest.Nodes) func() (*tls.Config, error) {
			return c.CA.Source("keyring://test/server/s1", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
		}, "own certificate is not valid before"},
		"another CA": {func(c *keyringtest.Nodes) func() (*tls.Config, error) {
			return mixed(c.CA.Source("keyring://test/server/s1", nil), func(own, others *tls.Config) { own.RootCAs = others.RootCAs }, foreign)
		}, "own certificate is from another CA"},
		"another key": {func(c *keyringtest.Nodes) func() (*tls.Config, error) {
			return mixed(c.CA.Source("keyring://test/server/s1", nil), func(own, others *tls.Config) {
				own.Certificates[0].PrivateKey = others.Certificates[0].PrivateKey
			}, foreign)
		}, "do not belong together"},
		"another server": {func(c *keyringtest.Nodes) func() (*tls.Config, error) {
			return c.CA.Source("keyring://test/server/s2", nil)
		}, "want keyring://test/server/s1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, listeners := keyringtest.NewNodes(t, 2)
			defer listeners["s2"].Close()
			cfg := c.Config("s1")
			cfg.Listener, cfg.Peers, cfg.TLS = listeners["s1"], c.Addrs, tt.tls(c)
			n, err := node.Start(keyringtest.UntilKilled(t), cfg)
			if err == nil {
				closeNode(t, n)
				t.Fatal("it starts")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if ln, err := net.Listen("tcp", cfg.Addr); err != nil {
				t.Errorf("the port is not given back: %v", err)
			} else {
				ln.Close()
			}
		})
	}
}

// mixed returns a source with something of that of another CA.
func mixed(own func() (*tls.Config, error), take func(own, others *tls.Config), foreign *keyringtest.CA) func() (*tls.Config, error) {
	other := foreign.Source("keyring://test/server/s1", nil)
	return func() (*tls.Config, error) {
		mine, err := own()
		if err != nil {
			return nil, err
		}
		theirs, err := other()
		if err != nil {
			return nil, err
		}
		take(mine, theirs)
		return mine, nil
	}
}

// TestServerWithALogStartsWithAnExpiredCertificate: what was sealed opens, the log says why it is alone, and the
// certificate can be replaced while it runs.
func TestServerWithALogStartsWithAnExpiredCertificate(t *testing.T) {
	t.Parallel()
	ctx, c, sealed := keyringtest.ReadyNodes(t, 1)
	closeNode(t, c.Nodes["s1"])
	delete(c.Nodes, "s1")
	cfg := c.Config("s1")
	cfg.TLS = c.CA.Source("keyring://test/server/s1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	log := &stopAt{text: "own certificate expired", do: func() {}}
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Error})
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer closeNode(t, n)
	if err := n.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Keyring().Decrypt(sealed, nil); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	if !strings.Contains(strings.Join(log.all, ""), log.text) {
		t.Errorf("%q", log.all)
	}
}

// hangingServer takes connections at an address, and answers none. It tells when raft has made one.
func hangingServer(t *testing.T, addr string) (asked <-chan struct{}) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	byRaft, over := make(chan struct{}, 1), make(chan struct{})
	hang := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(h.SupportedProtos, peer.ALPNRaft) {
			select {
			case byRaft <- struct{}{}:
			default:
			}
		}
		<-over
		return nil, net.ErrClosed
	}}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { tls.Server(conn, hang).Handshake(); conn.Close() })
		}
	})
	t.Cleanup(func() { ln.Close(); close(over); conns.Wait() })
	return byRaft
}

// TestCandidateClosesWhileTheOthersHang: its raft has asked for votes, and is not to wait for the answers until they are due.
func TestCandidateClosesWhileTheOthersHang(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	c.Close()
	clear(c.Nodes)
	asked := hangingServer(t, c.Addrs["s2"])
	hangingServer(t, c.Addrs["s3"])

	cfg, log := c.Config("s1"), &stopAt{text: "\x00"}
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Error})
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := n.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	votes := slices.DeleteFunc(log.all, func(line string) bool { return !strings.Contains(line, "failed to make requestVote RPC") })
	if len(votes) == 0 {
		t.Error("no vote was asked for that Close has ended")
	}
	for _, line := range votes {
		if !strings.Contains(line, "canceled") {
			t.Errorf("a vote was waited for until it was due: %s", line)
		}
	}
}
