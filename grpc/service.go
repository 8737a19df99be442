package keyringgrpc

// The service that answers the calls of other servers.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// ServiceName is the service with which servers call each other. The host's stream interceptors must let it
// pass: it checks the caller by itself.
const ServiceName = "keyring.v1.Peers"

// maxCalls is how many calls of one server are answered at a time. Others wait.
const maxCalls = 32

// Register adds the service for other servers to a grpc.Server, before its Serve. That server must have
// ServerOptions: over other connections the service answers nobody.
func (p *Peers) Register(s grpc.ServiceRegistrar) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: ServiceName,
		HandlerType: (*answerer)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Call", // with one message each way
			Handler:    func(srv any, stream grpc.ServerStream) error { return srv.(answerer).answer(stream) },
		}},
	}, p)
}

type answerer interface {
	answer(grpc.ServerStream) error
}

// answer answers one call.
func (p *Peers) answer(stream grpc.ServerStream) error {
	c, from, err := p.caller(stream.Context())
	if err != nil {
		p.log.note("rejected a call", "error", err)
		return status.Error(codes.Unauthenticated, "not a connection of a server of this cluster")
	}
	keys := p.keys.Load()
	if keys == nil {
		return status.Error(codes.Unavailable, "the keyring is not open yet")
	}
	ctx, cancel := context.WithTimeout(stream.Context(), callTimeout)
	defer cancel()
	release, err := p.calls.take(ctx, from)
	if err != nil {
		return status.Error(codes.ResourceExhausted, "too many calls at a time")
	}
	defer release()

	request, err := c.read(stream)
	if err != nil {
		return err
	}
	answer, err := (*keys).ServePeer(ctx, from, request) // it refuses who is no member now
	switch {
	case errors.Is(err, keyring.ErrClosed):
		return status.Error(codes.Unavailable, "the keyring is closed")
	case err != nil && ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case err != nil:
		p.log.note("could not answer a call", "server", from, "error", err)
		return status.Error(codes.Unavailable, "no answer")
	}
	return stream.SendMsg(wrapperspb.Bytes(answer))
}

// read returns the request of a call. An end that takes too long to send it loses its connection: nothing
// else ends a stream that has no deadline.
func (c *conn) read(stream grpc.ServerStream) ([]byte, error) {
	late := time.AfterFunc(patience, c.cut)
	defer late.Stop()
	message := new(wrapperspb.BytesValue)
	if err := stream.RecvMsg(message); err != nil {
		return nil, err
	}
	if n := len(message.GetValue()); n > maxMessage {
		return nil, status.Errorf(codes.ResourceExhausted, "request of %d bytes, at most %d fit", n, maxMessage)
	}
	return message.GetValue(), nil
}

// caller is the connection over which a call has come, and the server whose certificate that has.
func (p *Peers) caller(ctx context.Context) (*conn, raft.ServerID, error) {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return nil, "", errors.New("the caller of this call is unknown")
	}
	info, ok := from.AuthInfo.(serverInfo)
	if !ok || info.conn.of != &p.conns {
		return nil, "", fmt.Errorf("from %s: it was not made for calls between servers", from.Addr)
	}
	id, err := keyring.PeerID(&info.State, p.cfg.Cluster)
	if err != nil {
		return nil, "", fmt.Errorf("from %s: %w", from.Addr, err)
	}
	return info.conn, id, nil
}

// PeerID returns the ID of the member that has made a call over Conn, for a host's own service; ctx is that
// of the call. For all other callers it returns a status error: Unauthenticated if the caller is no server,
// PermissionDenied if it is a server but no member.
func (p *Peers) PeerID(ctx context.Context) (raft.ServerID, error) {
	_, id, err := p.caller(ctx)
	if err != nil {
		return "", status.Error(codes.Unauthenticated, err.Error())
	}
	if err := p.admits(id); err != nil {
		return "", status.Errorf(codes.PermissionDenied, "server %q: %v", id, err)
	}
	return id, nil
}

// places bounds the calls of each server.
type places struct {
	mu sync.Mutex // guards below
	of map[raft.ServerID]*place
}

type place struct {
	taken chan struct{}
	users int // that have one or wait for one
}

// take waits for a place, at most until ctx ends.
func (s *places) take(ctx context.Context, id raft.ServerID) (release func(), err error) {
	s.mu.Lock()
	one := s.of[id]
	if one == nil {
		one = &place{taken: make(chan struct{}, maxCalls)}
		s.of[id] = one
	}
	one.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(s.of, id)
		}
	}
	select {
	case one.taken <- struct{}{}:
		return func() { <-one.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
