package keyring_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// hostPort is what the ports of the examples have in common.
type hostPort struct {
	keyring.Transport
	raft  *atomic.Pointer[raft.Raft]
	keys  *atomic.Pointer[keyring.Keyring]
	close func() error
}

var hostPorts = map[string]func(net.Listener, tlsSource, *log.Logger) (hostPort, error){
	"net/http": func(ln net.Listener, source tlsSource, l *log.Logger) (hostPort, error) {
		p, err := listenHTTP(ln, hostCluster, source, l)
		if err != nil {
			return hostPort{}, err
		}
		return hostPort{p, &p.raft, &p.keys, p.Close}, nil
	},
	"net/rpc": func(ln net.Listener, source tlsSource, l *log.Logger) (hostPort, error) {
		p, err := listenRPC(ln, hostCluster, source, l)
		if err != nil {
			return hostPort{}, err
		}
		return hostPort{p, &p.raft, &p.keys, p.Close}, nil
	},
}

// toldLines is a log that a test can wait on.
type toldLines chan string

func (l toldLines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

// wait returns when a line says so. Nothing but the test's own time limit ends it otherwise.
func (l toldLines) wait(want string) {
	for !strings.Contains(<-l, want) {
	}
}

// portHost is the port of s1, whose raft has s1 and s2 and no leader.
type portHost struct {
	hostPort
	t     *testing.T
	ca    *keyringtest.CA
	kind  string
	told  toldLines
	raft1 *raft.Raft
}

func newPortHost(t *testing.T, kind string) *portHost {
	t.Helper()
	h := &portHost{t: t, ca: keyringtest.NewCA(t), kind: kind, told: make(toldLines, 100)}
	var addr string
	h.hostPort, addr = h.listen("server/s1", h.told)

	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
	store, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	_, trans := raft.NewInmemTransport(raft.ServerAddress(addr))
	err := raft.BootstrapCluster(conf, store, store, snaps, trans, raft.Configuration{Servers: []raft.Server{
		{ID: "s1", Address: raft.ServerAddress(addr)}, {ID: "s2", Address: "nowhere"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	fsm := keyring.NewFSM()
	if h.raft1, err = raft.NewRaft(conf, fsm, store, store, snaps, trans); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.raft1.Shutdown().Error() })
	keys, err := keyring.Open(t.Context(), keyring.Config{
		Dir: t.TempDir(), ID: "s1", Raft: h.raft1, FSM: fsm, Transport: h, KEKs: []keyring.KEK{keyring.InlineKEK()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	h.raft.Store(h.raft1)
	h.keys.Store(keys)
	return h
}

// listen opens a port with a certificate of that role and ID.
func (h *portHost) listen(who string, told io.Writer) (hostPort, string) {
	h.t.Helper()
	return h.listenWith(h.ca.Source("keyring://"+hostCluster+"/"+who, nil), told)
}

func (h *portHost) listenWith(source tlsSource, told io.Writer) (hostPort, string) {
	h.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	p, err := hostPorts[h.kind](ln, source, log.New(told, "", 0))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { p.close() })
	return p, ln.Addr().String()
}

// caller is a port with that certificate, which knows where s1 is.
func (h *portHost) caller(source tlsSource) hostPort {
	h.t.Helper()
	p, _ := h.listenWith(source, io.Discard)
	p.raft.Store(h.raft1)
	return p
}

func (h *portHost) member() hostPort { return h.caller(h.ca.Source(serverURI("s2"), nil)) }

var helloRequest = []byte(`{"version":1,"hello":{}}`)

func eachHost(t *testing.T, f func(t *testing.T, h *portHost)) {
	for kind := range hostPorts {
		t.Run(kind, func(t *testing.T) { f(t, newPortHost(t, kind)) })
	}
}

func TestExamplePortsAnswerMembers(t *testing.T) {
	eachHost(t, func(t *testing.T, h *portHost) {
		member := h.member()
		for range 3 {
			got, err := member.Call(t.Context(), "s1", helloRequest)
			if err != nil || !bytes.Contains(got, []byte(`"keystore"`)) {
				t.Fatalf("%q, %v", got, err)
			}
		}
		if _, err := member.Call(t.Context(), "s9", helloRequest); err == nil || !strings.Contains(err.Error(), "not in the raft configuration") {
			t.Errorf("call of nobody: %v", err)
		}
		if _, err := member.Call(t.Context(), "s1", make([]byte, 1<<20+1)); err == nil || !strings.Contains(err.Error(), "request of 1048577 bytes") {
			t.Errorf("a long request: %v", err)
		}
	})
}

func TestExamplePortsRefuseNonMembers(t *testing.T) {
	eachHost(t, func(t *testing.T, h *portHost) {
		cases := badSources(t, h.ca, "s2")
		no := cases["no URI"]
		no.source, no.want = h.ca.Source(serverURI("s4"), nil), "not in the raft configuration"
		cases["not a member"] = no
		delete(cases, "foreign CA") // it does not get so far as to be refused: it finds no server that it trusts
		for name, tt := range cases {
			if got, err := h.caller(tt.source).Call(t.Context(), "s1", helloRequest); err == nil || len(got) > 0 {
				t.Errorf("%s: %q, %v", name, got, err)
			}
			h.told.wait(tt.want)
		}
		plain, err := net.Dial("tcp", string(h.raft1.GetConfiguration().Configuration().Servers[0].Address))
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		io.WriteString(plain, `{"method":"Keyring.Call","params":["e30="],"id":1}`)
		h.told.wait("does not look like a TLS handshake")
	})
}

func TestExamplePortsAreNotReadyBeforeOpen(t *testing.T) {
	eachHost(t, func(t *testing.T, h *portHost) {
		member := h.member()
		h.keys.Store(nil)
		if got, err := member.Call(t.Context(), "s1", helloRequest); err == nil || len(got) > 0 {
			t.Errorf("before Open: %q, %v", got, err)
		}
		h.raft.Store(nil)
		if got, err := h.member().Call(t.Context(), "s1", helloRequest); err == nil || len(got) > 0 {
			t.Errorf("before raft: %q, %v", got, err)
		}
		h.told.wait("raft does not run here yet")
	})
}

// TestExamplePortsEndACallWithItsContext has a server that takes a request and never answers.
func TestExamplePortsEndACallWithItsContext(t *testing.T) {
	eachHost(t, func(t *testing.T, h *portHost) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		conf, err := keyring.ServerTLS(h.ca.Source(serverURI("s1"), nil), hostCluster, only("s2"), httpProtocol, rpcProtocol)
		if err != nil {
			t.Fatal(err)
		}
		member := h.member()
		member.raft.Store(h.elsewhere(ln.Addr().String()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // no deadline of the port's own ends it
		ended := make(chan error, 1)
		go func() {
			_, err := member.Call(ctx, "s1", helloRequest)
			ended <- err
		}()
		raw, err := tls.NewListener(ln, conf).Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if _, err := raw.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("call: %v", err)
		}
		io.Copy(io.Discard, raw) // until the client has hung up
	})
}

// elsewhere is a raft in whose configuration s1 has that address.
func (h *portHost) elsewhere(addr string) *raft.Raft {
	h.t.Helper()
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "s2", hclog.NewNullLogger()
	store, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	_, trans := raft.NewInmemTransport("")
	servers := []raft.Server{{ID: "s1", Address: raft.ServerAddress(addr)}, {ID: "s2", Address: trans.LocalAddr()}}
	if err := raft.BootstrapCluster(conf, store, store, snaps, trans, raft.Configuration{Servers: servers}); err != nil {
		h.t.Fatal(err)
	}
	r, err := raft.NewRaft(conf, keyring.NewFSM(), store, store, snaps, trans)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { r.Shutdown().Error() })
	return r
}

// TestExampleHTTPBoundsRequests sends what Call would not.
func TestExampleHTTPBoundsRequests(t *testing.T) {
	h := newPortHost(t, "net/http")
	member := h.member().Transport.(*httpPeers)
	for name, tt := range map[string]struct {
		method, path string
		body         []byte
		want         int
	}{
		"good":     {"POST", "/keyring", helloRequest, http.StatusOK},
		"too long": {"POST", "/keyring", make([]byte, 1<<20+1), http.StatusBadRequest},
		"method":   {"GET", "/keyring", nil, http.StatusForbidden},
		"path":     {"POST", "/keyring/", helloRequest, http.StatusForbidden},
	} {
		// 7331 is s1 in hexadecimal.
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "https://7331"+tt.path, bytes.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := member.client.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}

// TestExampleHTTPBoundsAnswers has a server with the right certificate that answers what it should not.
func TestExampleHTTPBoundsAnswers(t *testing.T) {
	h := newPortHost(t, "net/http")
	other, addr := h.listen("server/s1", io.Discard)
	other.raft.Store(h.raft1)
	member := h.member()
	member.raft.Store(h.elsewhere(addr))
	followed := false
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"too long": {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1<<20+1)) }, "too long"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			followed = followed || r.URL.Path != "/keyring"
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "307"},
	} {
		other.Transport.(*httpPeers).server.Handler = tt.answer
		if got, err := member.Call(t.Context(), "s1", helloRequest); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if followed {
		t.Error("a redirect was followed")
	}
}

// TestExampleRPCBoundsRequests: more than a message may have ends the connection, and is not decoded.
func TestExampleRPCBoundsRequests(t *testing.T) {
	h := newPortHost(t, "net/rpc")
	member := h.member().Transport.(*rpcPeers)
	conn, err := member.dial(t.Context(), "s1", string(h.raft1.GetConfiguration().Configuration().Servers[0].Address))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		io.WriteString(conn, `{"method":"Keyring.Call","params":["`)
		for range 2 << 10 {
			if _, err := conn.Write(bytes.Repeat([]byte("A"), 1<<10)); err != nil {
				return
			}
		}
	}()
	if b, _ := io.ReadAll(conn); len(b) > 0 {
		t.Errorf("answer %q", b)
	}
	h.told.wait("message is too long")
}

// TestExampleRaftPort: raft's connections come out of the port, say who they are, and end for a server
// that has been removed.
func TestExampleRaftPort(t *testing.T) {
	h := newPortHost(t, "net/http")
	port := h.Transport.(*httpPeers)
	member := h.member().Transport.(*httpPeers)
	out, err := member.Dial(raft.ServerAddress(port.Addr().String()), httpTimeout)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := port.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	b := make([]byte, 8)
	io.WriteString(out, "one")
	if n, err := in.Read(b); string(b[:n]) != "one" || err != nil {
		t.Errorf("%q, %v", b[:n], err)
	}
	in.(*raftConn).check = func() error { return errors.New("was removed") }
	io.WriteString(out, "two")
	if n, err := in.Read(b); n > 0 || err == nil || err.Error() != "was removed" {
		t.Errorf("of a removed server: %q, %v", b[:n], err)
	}
	if _, err := member.Dial("127.0.0.1:1", httpTimeout); err == nil || !strings.Contains(err.Error(), "not in the raft configuration") {
		t.Errorf("dial of an address of nobody: %v", err)
	}
}

// TestExampleLimit: a connection that is too many is closed, and its place is free when another ends.
func TestExampleLimit(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	limited := atMost(ln, 1)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first, err := limited.Accept()
	if err != nil {
		t.Fatal(err)
	}
	second := dial()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := limited.Accept()
		accepted <- c
	}()
	if b, err := io.ReadAll(second); len(b) > 0 {
		t.Errorf("one too many: %q, %v", b, err)
	}
	first.Close()
	first.Close()
	dial()
	if c := <-accepted; c == nil {
		t.Error("none is accepted after the first has ended")
	} else {
		c.Close()
	}
}
