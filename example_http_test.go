package keyring_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	httpTimeout = 10 * time.Second // of a dial, a handshake, a request
	httpMessage = 1 << 20          // what a request and an answer may have
	httpConns   = 256              // accepted at a time

	// What runs on a connection. Raft and the keyring's requests share the port, and a connection
	// that was made for one can't be used for the other.
	httpProtocol     = "http/1.1"
	httpRaftProtocol = "myservice-raft/1"
)

// httpPeers is what a host writes that has a protocol of its own; any other has package port in its place. It is a server's
// port: the keyring's Transport over net/http, and raft's StreamLayer. In
// the raft configuration a server's address is that of this port.
type httpPeers struct {
	cluster string
	source  func() (*tls.Config, error) // this server's certificate and the CA, read again if they may change
	ln      net.Listener
	server  http.Server
	client  http.Transport
	streams chan net.Conn // to raft
	done    chan struct{}
	closing sync.Once
	serving sync.WaitGroup

	raft atomic.Pointer[raft.Raft]       // nil until NewRaft has returned
	keys atomic.Pointer[keyring.Keyring] // nil until Open has returned
}

func listenHTTP(ln net.Listener, cluster string, source func() (*tls.Config, error), logger *log.Logger) (*httpPeers, error) {
	p := &httpPeers{cluster: cluster, source: source, ln: ln, streams: make(chan net.Conn), done: make(chan struct{})}
	conf, err := keyring.ServerTLS(source, cluster, p.member, httpProtocol, httpRaftProtocol)
	if err != nil {
		return nil, err
	}
	p.server = http.Server{
		Handler:           p,
		ReadHeaderTimeout: httpTimeout, // of the handshake too
		ReadTimeout:       httpTimeout,
		WriteTimeout:      2 * httpTimeout, // from the header on: the answer takes its time
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          logger, // has who was refused, and why
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){httpRaftProtocol: p.acceptRaft},
	}
	p.client = http.Transport{
		// The name is the hexadecimal ID: connections are kept by server, not by address.
		DialTLSContext:         func(ctx context.Context, _, name string) (net.Conn, error) { return p.dialName(ctx, name) },
		DisableCompression:     true, // an answer that is small on the wire is small
		MaxConnsPerHost:        16,
		IdleConnTimeout:        time.Minute, // less than the server's
		MaxResponseHeaderBytes: 8 << 10,
	}
	p.serving.Go(func() { p.server.Serve(tls.NewListener(atMost(ln, httpConns), conf)) })
	return p, nil
}

// member is asked in each handshake, and at each read of raft's connections.
func (p *httpPeers) member(id raft.ServerID) error {
	r := p.raft.Load()
	if r == nil {
		return errors.New("raft does not run here yet")
	}
	servers := r.GetConfiguration().Configuration().Servers
	if len(servers) == 0 {
		return nil // this server is to be added, and learns from raft who the others are
	}
	if !slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == id }) {
		return errors.New("not in the raft configuration")
	}
	return nil
}

// find returns the server of the raft configuration with that ID, or if it is empty that address.
func (p *httpPeers) find(id raft.ServerID, addr raft.ServerAddress) (raft.Server, error) {
	if r := p.raft.Load(); r != nil {
		for _, s := range r.GetConfiguration().Configuration().Servers {
			if s.ID == id || id == "" && s.Address == addr {
				return s, nil
			}
		}
	}
	return raft.Server{}, fmt.Errorf("server %q %s is not in the raft configuration", id, addr)
}

// dial connects to that server and no other, for the protocol.
func (p *httpPeers) dial(ctx context.Context, to raft.Server, protocol string) (net.Conn, error) {
	conf, err := keyring.ClientTLS(p.source, p.cluster, to.ID, protocol)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	return (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", string(to.Address)) // with the handshake
}

func (p *httpPeers) dialName(ctx context.Context, name string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(name)
	if err != nil {
		return nil, err
	}
	id, err := hex.DecodeString(host)
	if err != nil {
		return nil, err
	}
	to, err := p.find(raft.ServerID(id), "")
	if err != nil {
		return nil, err
	}
	return p.dial(ctx, to, httpProtocol)
}

// Call implements keyring.Transport.
func (p *httpPeers) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	if len(request) > httpMessage {
		return nil, fmt.Errorf("request of %d bytes", len(request))
	}
	url := "https://" + hex.EncodeToString([]byte(to)) + "/keyring"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(request))
	if err != nil {
		return nil, err
	}
	resp, err := p.client.RoundTrip(req) // an http.Client would follow redirects
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("HTTP status %s", resp.Status)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, httpMessage+1))
	if err == nil && len(answer) > httpMessage {
		err = errors.New("answer is too long")
	}
	return answer, err
}

// ServeHTTP answers another server's Call.
func (p *httpPeers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from, err := keyring.PeerID(r.TLS, p.cluster) // and never from the request
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/keyring" {
		http.Error(w, "not a call", http.StatusForbidden)
		return
	}
	keys := p.keys.Load()
	if keys == nil {
		http.Error(w, "not ready", http.StatusServiceUnavailable)
		return
	}
	request, err := io.ReadAll(http.MaxBytesReader(w, r.Body, httpMessage))
	if err != nil {
		http.Error(w, "not whole, or too long", http.StatusBadRequest)
		return
	}
	answer, err := keys.ServePeer(r.Context(), from, request) // it refuses who is no member now
	if err != nil {
		http.Error(w, "no answer", http.StatusServiceUnavailable)
		return
	}
	w.Write(answer)
}

// acceptRaft gets raft's connections from net/http, after the handshake. They end when it returns.
func (p *httpPeers) acceptRaft(_ *http.Server, conn *tls.Conn, _ http.Handler) {
	state := conn.ConnectionState()
	from, err := keyring.PeerID(&state, p.cluster)
	if err != nil {
		return
	}
	c := &raftConn{Conn: conn, check: func() error { return p.member(from) }, closed: make(chan struct{})}
	select {
	case p.streams <- c:
		<-c.closed
	case <-p.done:
	}
}

// raftConn is a connection that another server's raft has made. Raft keeps it, and takes whatever it
// reads: from a server that has been removed since it reads nothing.
type raftConn struct {
	net.Conn
	check  func() error
	once   sync.Once
	closed chan struct{}
}

func (c *raftConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if gone := c.check(); gone != nil {
		return 0, gone // raft closes the connection
	}
	return n, err
}

func (c *raftConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// Accept implements raft.StreamLayer.
func (p *httpPeers) Accept() (net.Conn, error) {
	select {
	case c := <-p.streams:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Dial implements raft.StreamLayer. Raft has the address alone; the certificate has to have the ID.
func (p *httpPeers) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	to, err := p.find("", addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return p.dial(ctx, to, httpRaftProtocol)
}

// Addr implements raft.StreamLayer. It is the address in the raft configuration: with a listener on
// all interfaces it is not ln's.
func (p *httpPeers) Addr() net.Addr { return p.ln.Addr() }

// Close implements raft.StreamLayer: it ends the port and all connections.
func (p *httpPeers) Close() (err error) {
	p.closing.Do(func() {
		close(p.done)
		err = p.server.Close()
		p.serving.Wait()
		p.client.CloseIdleConnections()
	})
	return err
}

// httpServer is one server of the host.
type httpServer struct {
	peers *httpPeers
	raft  *raft.Raft
	keys  *keyring.Keyring
}

func startHTTP(ctx context.Context, id raft.ServerID, dir string, peers *httpPeers, first raft.Configuration) (*httpServer, error) {
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = id, hclog.NewNullLogger()
	store, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore() // yours are on disk
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: peers, MaxPool: 3, Timeout: httpTimeout, Logger: conf.Logger,
		MaxRPCsInFlight: 1, // no pipeline: a leader that is deposed can hang in it (hashicorp/raft issue 612)
	})
	if len(first.Servers) > 0 {
		// Without, this server is to be added to a cluster, by AddVoter on the leader.
		err := raft.BootstrapCluster(conf, store, store, snaps, trans, first)
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) { // which is that it has run before
			return nil, err
		}
	}
	fsm := keyring.NewFSM() // with an FSM of your own: keyring.Mux(fsm, yours) to raft
	r, err := raft.NewRaft(conf, fsm, store, store, snaps, trans)
	if err != nil {
		return nil, err
	}
	peers.raft.Store(r)
	keys, err := keyring.Open(ctx, keyring.Config{
		Dir: filepath.Join(dir, "keystore"), ID: id, Raft: r, FSM: fsm, Transport: peers,
		KEKs: []keyring.KEK{keyring.InlineKEK()}, // for the example: anyone with the files has the keys
	})
	if err != nil {
		return nil, errors.Join(err, r.Shutdown().Error())
	}
	peers.keys.Store(keys)
	return &httpServer{peers, r, keys}, nil
}

// close has an order: the keyring ends its calls, then raft, then the connections under both.
func (s *httpServer) close() error {
	return errors.Join(s.keys.Close(), s.raft.Shutdown().Error(), s.peers.Close())
}

// connLimit closes connections that are too many at a time: clients must not use up the file descriptors.
// These can still take the places of others, each for as long as a handshake may take, so a firewall
// is to keep them off the port.
type connLimit struct {
	net.Listener
	slots chan struct{}
}

func atMost(ln net.Listener, n int) net.Listener { return connLimit{ln, make(chan struct{}, n)} }

func (l connLimit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			c.Close()
		}
	}
}

type limitedConn struct {
	net.Conn
	free func()
}

func (c *limitedConn) Close() error {
	c.free()
	return c.Conn.Close()
}

// A host with its own raft carries the keyring's requests over net/http, and raft's own connections
// over the same port, with mutual TLS. Copy all of it but the function itself. Three servers run in
// this process.
func ExampleTransport_http() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ca := newExampleCA() // of the cluster "prod"
	dir, err := os.MkdirTemp("", "keyring")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	var ports []*httpPeers
	var first raft.Configuration // the same on each server
	for _, id := range []string{"s1", "s2", "s3"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			log.Fatal(err)
		}
		refused := log.New(io.Discard, "", 0)
		port, err := listenHTTP(ln, "prod", ca.source("keyring://prod/server/"+id), refused)
		if err != nil {
			log.Fatal(err)
		}
		ports = append(ports, port)
		first.Servers = append(first.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(ln.Addr().String())})
	}
	var keys []*keyring.Keyring
	for i, s := range first.Servers {
		server, err := startHTTP(ctx, s.ID, filepath.Join(dir, string(s.ID)), ports[i], first)
		if err != nil {
			log.Fatal(err)
		}
		defer server.close()
		keys = append(keys, server.keys)
	}

	sealed, err := rotateAndSeal(ctx, keys, []byte("secret"))
	if err != nil {
		log.Fatal(err)
	}
	for i, k := range keys {
		plaintext, err := openSoon(ctx, k, sealed)
		fmt.Printf("%s opens %q, %v\n", first.Servers[i].ID, plaintext, err)
	}

	// A client has a certificate of the same CA. It calls as a server would.
	client := &httpPeers{cluster: "prod", source: ca.source("keyring://prod/client/web")}
	conn, err := client.dial(ctx, first.Servers[0], httpProtocol)
	if err != nil {
		log.Fatal(err) // its side of the handshake is over before the server has seen the certificate
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /keyring HTTP/1.1\r\nHost: s1\r\nContent-Length: 0\r\n\r\n")
	answer, err := io.ReadAll(conn)
	fmt.Printf("the client gets %q, an error: %t\n", answer, err != nil)

	// Output:
	// s1 opens "secret", <nil>
	// s2 opens "secret", <nil>
	// s3 opens "secret", <nil>
	// the client gets "", an error: true
}
