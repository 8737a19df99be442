package keyringgrpc

// The handshakes of a port, in both directions: which TLS configuration a connection gets, and where it goes
// then.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// What runs on a connection, for ALPN. A connection that was made for one of them can't be used for another.
const (
	callProtocol   = "keyring-grpc/1"
	raftProtocol   = "keyring-grpc-raft/1"
	clientProtocol = "h2"
)

const (
	maxHeader  = 8 << 10 // of a call
	maxStreams = 256     // calls on one connection at a time
)

// ServerOptions are the options for the grpc.Server on the port: TLS, and limits on handshakes, headers and
// calls. The host's own options come after them. Those may set other limits for clients, and must not include
// grpc.Creds. Several servers may use ServerOptions.
//
// onlyMembers are services of the host that answer members alone, as package.Service: for example one that
// forwards to the leader, or one of another module that carries raft. Other callers get a status error: see
// PeerID.
func (p *Peers) ServerOptions(onlyMembers ...string) []grpc.ServerOption {
	may := func(ctx context.Context, method string) error {
		service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
		if !slices.Contains(onlyMembers, service) {
			return nil
		}
		_, err := p.PeerID(ctx)
		if err != nil {
			p.log.note("rejected a call", "method", method, "error", err)
		}
		return err
	}
	return []grpc.ServerOption{
		grpc.Creds(serverCredentials{p}), grpc.ConnectionTimeout(patience), grpc.MaxHeaderListSize(maxHeader), grpc.MaxConcurrentStreams(maxStreams),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if err := may(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return handler(ctx, request)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if err := may(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return handler(srv, stream)
		}),
	}
}

// serverInfo is the AuthInfo of a connection that a member has made, for calls. That of a client is a
// credentials.TLSInfo.
type serverInfo struct {
	credentials.TLSInfo
	conn *conn
}

// serverCredentials does the handshakes of accepted connections.
type serverCredentials struct{ peers *Peers }

// ServerHandshake implements credentials.TransportCredentials. It runs in a goroutine of the connection's.
func (c serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p := c.peers
	if err := p.conns.begin(raw); err != nil {
		return nil, nil, err
	}
	defer p.conns.end(raw)
	got, err := p.accept(raw)
	if err != nil {
		p.log.note("rejected a connection", "from", raw.RemoteAddr(), "error", err)
		drain(raw)
		return nil, nil, err // grpc closes it
	}
	info := tlsInfo(got)
	switch got.protocol {
	case raftProtocol:
		p.raft.hand(got)
		return nil, nil, credentials.ErrConnDispatched
	case callProtocol:
		return got, serverInfo{info, got}, nil
	}
	return got, info, nil
}

// accept brings an accepted connection through its handshake.
func (p *Peers) accept(raw net.Conn) (*conn, error) {
	keepAlive(raw)
	shown := new(own)
	tc := tls.Server(raw, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return p.configFor(hello, shown) }})
	ctx, cancel := p.bound(context.Background())
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	state := tc.ConnectionState()
	c := &conn{Conn: tc, protocol: state.NegotiatedProtocol, own: shown.leaf}
	switch c.protocol {
	case callProtocol, raftProtocol:
		var err error
		if c.server, err = keyring.PeerID(&state, p.cfg.Cluster); err != nil {
			return nil, err
		}
	case clientProtocol:
	default:
		return nil, errors.New("it asks for no protocol of this port")
	}
	if err := p.keep(c); err != nil {
		return nil, err
	}
	return c, nil
}

// keep notes a connection, and closes it again if its server was removed in between.
func (p *Peers) keep(c *conn) error {
	if err := p.conns.add(c); err != nil || c.server == "" {
		return err
	}
	if err := p.admits(c.server); err != nil {
		p.conns.forget(c)
		return fmt.Errorf("server %q: %w", c.server, err)
	}
	return nil
}

// configFor chooses by what the other end asks for.
func (p *Peers) configFor(hello *tls.ClientHelloInfo, shown *own) (*tls.Config, error) {
	if !slices.Contains(hello.SupportedProtos, callProtocol) && !slices.Contains(hello.SupportedProtos, raftProtocol) {
		if p.cfg.Clients == nil {
			return nil, fmt.Errorf("it asks for %q: only servers may connect", hello.SupportedProtos)
		}
		return clientConfig(p.cfg.Clients, hello)
	}
	conf, err := keyring.ServerTLS(shown.noting(p.cfg.TLS()), p.cfg.Cluster, p.admits, callProtocol, raftProtocol)
	if err != nil || conf.GetConfigForClient == nil {
		return conf, err
	}
	return conf.GetConfigForClient(hello) // crypto/tls asks once only
}

// clientConfig is the host's configuration for clients. At the start there is no hello.
func clientConfig(source func() (*tls.Config, error), hello *tls.ClientHelloInfo) (*tls.Config, error) {
	base, err := source()
	if err = usable(base, err); err == nil && base.GetConfigForClient != nil && hello != nil {
		var own *tls.Config
		if own, err = base.GetConfigForClient(hello); own != nil {
			base = own
		}
	}
	if err != nil {
		return nil, fmt.Errorf("TLS configuration for clients: %w", err)
	}
	c := base.Clone()
	c.GetConfigForClient = nil
	c.NextProtos = []string{clientProtocol}
	if c.ClientCAs == nil {
		c.ClientCAs = c.RootCAs
	}
	if c.ClientCAs == nil && c.ClientAuth >= tls.VerifyClientCertIfGiven {
		// crypto/tls would take the system's roots, which vouch for the whole internet.
		return nil, errors.New("TLS configuration for clients: ClientCAs is required")
	}
	return c, nil
}

// usable says why what a source has returned is no configuration. Beside some errors, as of keyring.TLSFiles,
// it is one.
func usable(base *tls.Config, err error) error {
	if base == nil {
		return errors.Join(errors.New("there is none"), err)
	}
	if err == nil {
		return nil
	}
	_, refused := keyring.ClientTLS(func() (*tls.Config, error) { return base, err }, "any", "any", callProtocol)
	return refused
}

// ClientHandshake implements credentials.TransportCredentials. These are for accepted connections alone.
func (serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a server")
}

// Info implements credentials.TransportCredentials.
func (serverCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (c serverCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (serverCredentials) OverrideServerName(string) error { return errors.New("no server names") }

// memberCredentials does the handshakes of connections to one member, or to the member at the address that is
// dialled.
type memberCredentials struct {
	serverCredentials
	id raft.ServerID // empty if the address says it
}

// ClientHandshake implements credentials.TransportCredentials.
func (c memberCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	id := c.id
	if id == "" {
		to, err := c.peers.memberAt(authority)
		if err != nil {
			return nil, nil, err
		}
		id, raw = to.ID, dialled{raw, authority}
	}
	got, err := c.peers.secure(ctx, raw, id, callProtocol)
	if err != nil {
		return nil, nil, err
	}
	return got, tlsInfo(got), nil
}

// Clone implements credentials.TransportCredentials.
func (c memberCredentials) Clone() credentials.TransportCredentials { return c }

// ServerHandshake implements credentials.TransportCredentials.
func (memberCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a client")
}

// secure does the handshake on a connection that this side has made to a server.
func (p *Peers) secure(ctx context.Context, raw net.Conn, id raft.ServerID, protocol string) (*conn, error) {
	keepAlive(raw)
	shown := new(own)
	conf, err := keyring.ClientTLS(shown.noting(p.cfg.TLS()), p.cfg.Cluster, id, protocol)
	if err != nil {
		return nil, err
	}
	ctx, cancel := p.bound(ctx)
	defer cancel()
	tc := tls.Client(raw, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	c := &conn{Conn: tc, server: id, protocol: protocol, dialled: dialledAt(raw), own: shown.leaf}
	if err := p.keep(c); err != nil {
		return nil, err
	}
	return c, nil
}

// dialled is a TCP connection that knows the address it was made to, as a name may be.
type dialled struct {
	net.Conn
	addr string
}

func dialledAt(raw net.Conn) string {
	if d, ok := raw.(dialled); ok {
		return d.addr
	}
	return raw.RemoteAddr().String()
}

// dial makes a connection to an address.
func (p *Peers) dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	raw, err := p.dialRaw(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return dialled{raw, addr}, nil
}

// bound returns a context that has an end, and ends with Close.
func (p *Peers) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	stop := context.AfterFunc(p.life, cancel)
	return ctx, func() { stop(); cancel() }
}

func tlsInfo(c *conn) credentials.TLSInfo {
	return credentials.TLSInfo{
		State: c.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
}

// keepAlive has the kernel find out, within half a minute, that the other end of a connection is gone.
func keepAlive(c net.Conn) {
	for d, ok := c.(dialled); ok; d, ok = c.(dialled) {
		c = d.Conn
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3})
	}
}

// drain ends this side of a refused connection and reads on for a while. Closing it while bytes are unread
// would reset the connection, and the reset may overtake the alert that says why.
func drain(raw net.Conn) {
	if w, ok := raw.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		raw.SetReadDeadline(time.Now().Add(time.Second))
		io.CopyN(io.Discard, raw, 2*maxMessage)
	}
}
