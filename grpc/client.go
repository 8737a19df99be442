package keyringgrpc

// Calls of other servers, over connections that are kept by their IDs.

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	maxMessage = 1 << 20         // what a request and an answer may have
	maxOnWire  = maxMessage + 16 // with what a BytesValue has around it
)

// Call implements keyring.Transport. An error of the other server has that server's status code: use
// status.Code.
func (p *Peers) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	if len(request) > maxMessage {
		return nil, fmt.Errorf("call server %q: request of %d bytes, the maximum is %d", to, len(request), maxMessage)
	}
	l, err := p.use(to)
	if err != nil {
		return nil, fmt.Errorf("call server %q: %w", to, err)
	}
	answer := new(wrapperspb.BytesValue)
	err = l.cc.Invoke(ctx, "/"+ServiceName+"/Call", wrapperspb.Bytes(request), answer, grpc.MaxCallRecvMsgSize(maxOnWire), grpc.MaxCallSendMsgSize(maxOnWire))
	// An end that is cut off may look alive for long: the next call makes a connection of its own.
	p.release(l, err, status.Code(err) == codes.DeadlineExceeded)
	if err != nil {
		return nil, fmt.Errorf("call server %q: %w", to, withCause(ctx, err))
	}
	return answer.GetValue(), nil
}

// withCause has an error match that of the context which has ended the call.
func withCause(ctx context.Context, err error) error {
	if status.Code(err) == codes.DeadlineExceeded { // the other side knows the deadline too, and may be first
		return errors.Join(context.DeadlineExceeded, err)
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	return err
}

// Conn returns a connection to the member of that ID, for the host's own services on that server, for example
// to forward a call to the leader:
//
//	_, leader := r.LeaderWithID()
//	return pb.NewSecretsClient(peers.Conn(leader)).Put(ctx, request)
//
// You may keep it: each call goes to the member's present address, and fails if the server is no member. The
// service at the other end learns from PeerID which server has called it.
func (p *Peers) Conn(id raft.ServerID) grpc.ClientConnInterface { return member{p, id} }

type member struct {
	peers *Peers
	id    raft.ServerID
}

// Invoke implements grpc.ClientConnInterface.
func (m member) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	l, err := m.peers.use(m.id)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	err = l.cc.Invoke(ctx, method, args, reply, opts...)
	m.peers.release(l, err, false)
	return err
}

// NewStream implements grpc.ClientConnInterface.
func (m member) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	l, err := m.peers.use(m.id)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	var once sync.Once
	release := func(err error) { once.Do(func() { m.peers.release(l, err, false) }) }
	s, err := l.cc.NewStream(ctx, desc, method, append(slices.Clip(opts), grpc.OnFinish(release))...)
	if err != nil {
		release(err)
	}
	return s, err
}

// link is a grpc.ClientConn. After a failure it would wait before it connects again, and fail all calls
// meanwhile with what was so before: the next call has a new one. The old one is closed when its last call
// has ended.
type link struct {
	id      raft.ServerID
	cc      *grpc.ClientConn
	users   int         // guarded by Peers.mu
	retired atomic.Bool // by giveUp: the last call closes it
}

// use returns the link to a member. The caller releases it.
func (p *Peers) use(id raft.ServerID) (*link, error) {
	if _, err := p.memberOf(id); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, net.ErrClosed
	}
	l := p.links[id]
	if l == nil {
		cc, err := p.connect(id)
		if err != nil {
			return nil, err
		}
		l = &link{id: id, cc: cc}
		p.links[id] = l
	}
	l.users++
	return l, nil
}

// DialOptions are for a module that makes its own connections to members, by their addresses in raft's
// configuration, such as one that carries raft over gRPC. Pass the name of its service to ServerOptions.
func (p *Peers) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(memberCredentials{serverCredentials{p}, ""}), grpc.WithContextDialer(p.dial),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	}
}

// connect returns a connection that is made at its first call. It follows no service configuration, which
// could make it retry, and goes through no proxy.
func (p *Peers) connect(id raft.ServerID) (*grpc.ClientConn, error) {
	name := hex.EncodeToString([]byte(id)) // in place of a host name, which an ID need not be
	return grpc.NewClient("passthrough:///"+name,
		grpc.WithTransportCredentials(memberCredentials{serverCredentials{p}, id}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			addr, err := p.addr(id)
			if err != nil {
				return nil, err
			}
			return p.dial(ctx, addr)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: patience}),
		grpc.WithAuthority(name), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithDisableHealthCheck(),
		grpc.WithMaxHeaderListSize(maxHeader),
	)
}

// release ends the use of a link by a call that has ended with err. Late is that the other end may be cut off.
func (p *Peers) release(l *link, err error, late bool) {
	p.mu.Lock()
	l.users--
	p.mu.Unlock()
	if late || l.retired.Load() || status.Code(err) == codes.Unavailable && l.cc.GetState() != connectivity.Ready {
		p.giveUp(l)
	}
}

// retire has the next call to a server make a connection of its own.
func (p *Peers) retire(id raft.ServerID) {
	p.mu.Lock()
	l := p.links[id]
	p.mu.Unlock()
	if l != nil {
		p.giveUp(l)
	}
}

// giveUp takes no more calls to a link, and closes it when nobody uses it.
func (p *Peers) giveUp(l *link) {
	l.retired.Store(true)
	p.mu.Lock()
	if p.links[l.id] == l {
		delete(p.links, l.id)
	}
	over := l.users == 0
	p.mu.Unlock()
	if over {
		l.cc.Close()
	}
}

// hangUp closes the links to servers that are no members, with the calls on them.
func (p *Peers) hangUp() {
	p.closeLinks(func(id raft.ServerID) bool {
		_, err := p.memberOf(id)
		return err != nil
	})
}

// closeLinks closes links with the calls on them.
func (p *Peers) closeLinks(gone func(raft.ServerID) bool) {
	var closed []*link
	p.mu.Lock()
	for id, l := range p.links {
		if gone(id) {
			closed = append(closed, l)
			delete(p.links, id)
		}
	}
	p.mu.Unlock()
	for _, l := range closed {
		l.cc.Close()
	}
}
