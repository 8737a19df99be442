package keyring_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
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
	rpcTimeout  = 10 * time.Second // of a dial, a handshake, the rest of a request that has begun
	rpcIdle     = 2 * time.Minute  // between requests
	rpcMessage  = 1 << 20          // what a request and an answer may have
	rpcOnWire   = rpcMessage/3*4 + 4<<10
	rpcConns    = 256 // accepted at a time
	rpcProtocol = "myservice-keyring-rpc/1"
)

// rpcPeers is a server's port for the keyring's requests, over net/rpc. Package rpc has no contexts, no
// deadlines, no bounds of sizes and of requests at a time, and a panic in it ends the process: what
// net/http brings along is done by hand here, by having one call at a time on a connection.
type rpcPeers struct {
	cluster string
	source  func() (*tls.Config, error)
	conf    *tls.Config
	ln      net.Listener
	log     *log.Logger
	slots   chan struct{}
	serving sync.WaitGroup

	raft atomic.Pointer[raft.Raft]       // nil until NewRaft has returned
	keys atomic.Pointer[keyring.Keyring] // nil until Open has returned

	mu       sync.Mutex // guards below
	closed   bool
	accepted map[net.Conn]bool
	idle     map[raft.ServerID][]*rpcConn // dialled, to the server of that ID
}

func listenRPC(ln net.Listener, cluster string, source func() (*tls.Config, error), logger *log.Logger) (*rpcPeers, error) {
	p := &rpcPeers{
		cluster: cluster, source: source, ln: ln, log: logger, slots: make(chan struct{}, rpcConns),
		accepted: map[net.Conn]bool{}, idle: map[raft.ServerID][]*rpcConn{},
	}
	var err error
	if p.conf, err = keyring.ServerTLS(source, cluster, p.member, rpcProtocol); err != nil {
		return nil, err
	}
	p.serving.Go(p.accept)
	return p, nil
}

// member is asked in each handshake.
func (p *rpcPeers) member(id raft.ServerID) error {
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

func (p *rpcPeers) address(id raft.ServerID) (string, error) {
	if r := p.raft.Load(); r != nil {
		for _, s := range r.GetConfiguration().Configuration().Servers {
			if s.ID == id {
				return string(s.Address), nil
			}
		}
	}
	return "", fmt.Errorf("server %q is not in the raft configuration", id)
}

// boundedConn reads as much as one message may have, and then nothing until next.
type boundedConn struct {
	*tls.Conn
	left atomic.Int64
}

// next allows one more message, until the deadline.
func (c *boundedConn) next(deadline time.Time) {
	c.left.Store(rpcOnWire)
	c.SetDeadline(deadline)
}

func (c *boundedConn) Read(b []byte) (int, error) {
	left := c.left.Load()
	if left <= 0 {
		return 0, errors.New("message is too long")
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), left)])
	c.left.Add(-int64(n))
	return n, err
}

// rpcConn is a dialled connection. It is used by one call at a time.
type rpcConn struct {
	conn   *boundedConn
	client *rpc.Client
}

// Call implements keyring.Transport.
func (p *rpcPeers) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	if len(request) > rpcMessage {
		return nil, fmt.Errorf("request of %d bytes", len(request))
	}
	for {
		c, used, err := p.connect(ctx, to)
		if err != nil {
			return nil, err
		}
		answer, err := c.call(ctx, request)
		if serverError := rpc.ServerError(""); err == nil || errors.As(err, &serverError) {
			p.release(to, c)
			return answer, err
		}
		c.client.Close()
		if !used || !errors.Is(err, rpc.ErrShutdown) { // ErrShutdown: it was closed before, nothing was sent
			return nil, err
		}
	}
}

func (c *rpcConn) call(ctx context.Context, request []byte) ([]byte, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(rpcTimeout)
	}
	c.conn.next(deadline)
	stop := context.AfterFunc(ctx, func() { c.client.Close() }) // nothing else ends an rpc.Client's call
	var answer []byte
	err := c.client.Call("Keyring.Call", request, &answer)
	if !stop() {
		return nil, ctx.Err()
	}
	if err == nil && len(answer) > rpcMessage {
		err = errors.New("answer is too long")
	}
	return answer, err
}

// connect takes an idle connection, which was used before, or dials.
func (p *rpcPeers) connect(ctx context.Context, to raft.ServerID) (c *rpcConn, used bool, err error) {
	p.mu.Lock()
	if n := len(p.idle[to]); n > 0 {
		c = p.idle[to][n-1]
		p.idle[to] = p.idle[to][:n-1]
	}
	p.mu.Unlock()
	if c != nil {
		return c, true, nil
	}
	addr, err := p.address(to)
	if err != nil {
		return nil, false, err
	}
	conn, err := p.dial(ctx, to, addr)
	if err != nil {
		return nil, false, err
	}
	bounded := &boundedConn{Conn: conn}
	bounded.next(time.Time{})
	return &rpcConn{bounded, jsonrpc.NewClient(bounded)}, false, nil
}

func (p *rpcPeers) dial(ctx context.Context, to raft.ServerID, addr string) (*tls.Conn, error) {
	conf, err := keyring.ClientTLS(p.source, p.cluster, to, rpcProtocol)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr) // with the handshake
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), nil
}

// release keeps a connection for the next call, for half as long as the other side does.
func (p *rpcPeers) release(to raft.ServerID, c *rpcConn) {
	c.conn.next(time.Now().Add(rpcIdle / 2))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle[to]) == 4 {
		c.client.Close()
		return
	}
	p.idle[to] = append(p.idle[to], c)
}

// accept has a goroutine for each connection, so that a slow handshake holds nobody up.
func (p *rpcPeers) accept() {
	for {
		raw, err := p.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.log.Print(err)
			time.Sleep(100 * time.Millisecond) // too many open files, say: it passes
			continue
		}
		if !p.take(raw) {
			raw.Close()
			continue
		}
		p.serving.Go(func() {
			if err := p.serve(raw); err != nil && !errors.Is(err, io.EOF) {
				p.log.Printf("connection of %s: %v", raw.RemoteAddr(), err)
			}
			p.drop(raw)
		})
	}
}

// take notes a connection for Close, unless there are too many.
func (p *rpcPeers) take(raw net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	select {
	case p.slots <- struct{}{}:
		p.accepted[raw] = true
		return true
	default:
		return false
	}
}

func (p *rpcPeers) drop(raw net.Conn) {
	raw.Close()
	p.mu.Lock()
	delete(p.accepted, raw)
	p.mu.Unlock()
	<-p.slots
}

// serve answers one request after the other. Of ServeConn there could be any number at a time, of
// any size.
func (p *rpcPeers) serve(raw net.Conn) error {
	conn := tls.Server(raw, p.conf)
	conn.SetDeadline(time.Now().Add(rpcTimeout))
	if err := conn.Handshake(); err != nil {
		return err
	}
	state := conn.ConnectionState()
	from, err := keyring.PeerID(&state, p.cluster) // and never from a request
	if err != nil {
		return err
	}
	server, bounded := rpc.NewServer(), &boundedConn{Conn: conn}
	if err := server.RegisterName("Keyring", &rpcCaller{p, from}); err != nil {
		return err
	}
	codec := jsonrpc.NewServerCodec(bounded)
	for {
		bounded.next(time.Now().Add(rpcIdle))
		if err := server.ServeRequest(codec); err != nil {
			return err
		}
	}
}

// rpcCaller is what one connection can call, and who is at its other end.
type rpcCaller struct {
	peers *rpcPeers
	from  raft.ServerID
}

// Call answers another server's Call.
func (c *rpcCaller) Call(request []byte, answer *[]byte) (err error) {
	keys := c.peers.keys.Load()
	if keys == nil || len(request) > rpcMessage {
		return errors.New("not ready, or too long")
	}
	ctx, cancel := context.WithTimeout(context.Background(), rpcTimeout)
	defer cancel()
	if *answer, err = keys.ServePeer(ctx, c.from, request); err != nil { // it refuses who is no member now
		return errors.New("no answer")
	}
	return nil
}

// Close ends the port and all connections.
func (p *rpcPeers) Close() error {
	p.mu.Lock()
	p.closed = true
	for raw := range p.accepted {
		raw.Close()
	}
	for _, conns := range p.idle {
		for _, c := range conns {
			c.client.Close()
		}
	}
	p.mu.Unlock()
	err := p.ln.Close()
	p.serving.Wait()
	return err
}

// rpcServer is one server of the host.
type rpcServer struct {
	peers *rpcPeers
	raft  *raft.Raft
	keys  *keyring.Keyring
}

func startRPC(ctx context.Context, id raft.ServerID, dir string, peers *rpcPeers, trans raft.Transport, first raft.Configuration) (*rpcServer, error) {
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = id, hclog.NewNullLogger()
	store, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore() // yours are on disk
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
	return &rpcServer{peers, r, keys}, nil
}

// close has an order: the keyring ends its calls, then raft, then the connections.
func (s *rpcServer) close() error {
	return errors.Join(s.keys.Close(), s.raft.Shutdown().Error(), s.peers.Close())
}

// A host carries the keyring's requests over net/rpc with mutual TLS. Prefer net/http where you can: its
// server and client have the deadlines, the limits and the contexts that have to be built around net/rpc, and
// go on after a panic. Raft's transport is in memory here; the other example has one over TLS.
func ExampleTransport_rpc() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ca := newExampleCA() // of the cluster "prod"
	dir, err := os.MkdirTemp("", "keyring")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	var ports []*rpcPeers
	var rafts []*raft.InmemTransport
	var first raft.Configuration // the same on each server
	for _, id := range []string{"s1", "s2", "s3"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			log.Fatal(err)
		}
		refused := log.New(io.Discard, "", 0)
		port, err := listenRPC(ln, "prod", ca.source("keyring://prod/server/"+id), refused)
		if err != nil {
			log.Fatal(err)
		}
		addr, trans := raft.NewInmemTransport(raft.ServerAddress(ln.Addr().String()))
		ports, rafts = append(ports, port), append(rafts, trans)
		first.Servers = append(first.Servers, raft.Server{ID: raft.ServerID(id), Address: addr})
	}
	var keys []*keyring.Keyring
	for i, s := range first.Servers {
		for j, other := range first.Servers {
			rafts[i].Connect(other.Address, rafts[j])
		}
		server, err := startRPC(ctx, s.ID, filepath.Join(dir, string(s.ID)), ports[i], rafts[i], first)
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
	client := &rpcPeers{cluster: "prod", source: ca.source("keyring://prod/client/web")}
	conn, err := client.dial(ctx, "s1", string(first.Servers[0].Address))
	if err != nil {
		log.Fatal(err) // its side of the handshake is over before the server has seen the certificate
	}
	defer conn.Close()
	fmt.Fprint(conn, `{"method":"Keyring.Call","params":["e30="],"id":1}`)
	answer, err := io.ReadAll(conn)
	fmt.Printf("the client gets %q, an error: %t\n", answer, err != nil)

	// Output:
	// s1 opens "secret", <nil>
	// s2 opens "secret", <nil>
	// s3 opens "secret", <nil>
	// the client gets "", an error: true
}
