package main

// The API for users, over gRPC. Its messages are JSON, so that no code is generated: all requests are commands of package store.
// Users have a certificate of the cluster's CA, and may do everything.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"slices"
	"time"

	"example.com/keyring/examples/watchmap/store"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
)

const (
	serviceName  = "watchmap.v1.Map"
	applyTimeout = 5 * time.Second
)

func init() { encoding.RegisterCodec(jsonCodec{}) }

// jsonCodec is for calls of the content type application/grpc+json. The keyring's have another.
type jsonCodec struct{}

func (jsonCodec) Name() string                    { return "json" }
func (jsonCodec) Marshal(v any) ([]byte, error)   { return json.Marshal(v) }
func (jsonCodec) Unmarshal(b []byte, v any) error { return json.Unmarshal(b, v) }

// api answers users.
type api struct {
	raft  *raft.Raft
	store values
	calls []grpc.MethodDesc
}

// values are what the API works on: a store.Store.
type values interface {
	Put(ctx context.Context, key string, value []byte) (version uint64, err error)
	Delete(ctx context.Context, key string) (version uint64, err error)
	Get(key string) (store.Entry, error)
	List(prefix string) iter.Seq[store.Entry]
	Next(ctx context.Context, watch string, after uint64) (news []store.Entry, err error)
}

func newAPI(r *raft.Raft, s values) *api {
	a := &api{raft: r, store: s}
	a.handle("Put", func(ctx context.Context, c store.Command) (any, error) { return s.Put(ctx, c.Key, c.Value) })
	a.handle("Delete", func(ctx context.Context, c store.Command) (any, error) { return s.Delete(ctx, c.Key) })
	a.handle("Get", func(_ context.Context, c store.Command) (any, error) { return s.Get(c.Key) })
	a.handle("List", func(_ context.Context, c store.Command) (any, error) {
		return slices.AppendSeq([]store.Entry{}, s.List(c.Prefix)), nil
	})
	a.handle("SetWatch", a.setWatch)
	a.handle("Leader", func(ctx context.Context, c store.Command) (any, error) {
		return awaitLeader(ctx, r, raft.ServerID(c.Key))
	})
	a.handle("Snapshot", func(context.Context, store.Command) (any, error) { return nil, r.Snapshot().Error() })
	return a
}

// handle adds a call.
func (a *api) handle(name string, do func(context.Context, store.Command) (any, error)) {
	answer := func(ctx context.Context, request any) (any, error) {
		got, err := do(ctx, *request.(*store.Command))
		if got == nil {
			got = struct{}{} // gRPC encodes no nil
		}
		return got, statusOf(err)
	}
	a.calls = append(a.calls, grpc.MethodDesc{
		MethodName: name,
		Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			c := new(store.Command)
			if err := decode(c); err != nil {
				return nil, err
			}
			if intercept == nil {
				return answer(ctx, c)
			}
			return intercept(ctx, c, &grpc.UnaryServerInfo{Server: a, FullMethod: "/" + serviceName + "/" + name}, answer)
		},
	})
}

// watch is the call that tells the owner of a watch of its writes after a version, until the caller ends it.
func (a *api) watch(_ any, stream grpc.ServerStream) error {
	var c store.Command
	if err := stream.RecvMsg(&c); err != nil {
		return err
	}
	for {
		news, err := a.store.Next(stream.Context(), c.Key, c.Version)
		if err != nil {
			return statusOf(err)
		}
		for _, e := range news {
			c.Version = max(c.Version, e.Version)
		}
		if err := stream.SendMsg(news); err != nil {
			return err
		}
	}
}

// setWatch makes, moves or ends a watch: the command's op is watch, with a prefix, seen, with a version, or unwatch.
func (a *api) setWatch(_ context.Context, c store.Command) (any, error) {
	if c.Op != "watch" && c.Op != "seen" && c.Op != "unwatch" {
		return nil, fmt.Errorf("op %q is none of watch, seen, unwatch", c.Op)
	}
	f := a.raft.Apply(c.Encode(), applyTimeout)
	if err := f.Error(); err != nil {
		return nil, err
	}
	refused, _ := f.Response().(error)
	return nil, refused
}

// awaitLeader waits until this server knows of a leader other than not.
func awaitLeader(ctx context.Context, r *raft.Raft, not raft.ServerID) (raft.ServerID, error) {
	changed := make(chan raft.Observation, 1)
	o := raft.NewObserver(changed, false, func(o *raft.Observation) bool {
		_, is := o.Data.(raft.LeaderObservation)
		return is
	})
	r.RegisterObserver(o)
	defer r.DeregisterObserver(o)
	for {
		if _, id := r.LeaderWithID(); id != "" && id != not {
			return id, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// statusOf is what a caller gets for an error.
func statusOf(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrNoKey), errors.Is(err, store.ErrNoWatch):
		return status.Error(codes.NotFound, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}

// serve answers until ctx ends. The server goes on, for what is closed after that: its owner stops it.
func (a *api) serve(ctx context.Context, at string, srv *grpc.Server) error {
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName, HandlerType: (*any)(nil), Methods: a.calls,
		Streams: []grpc.StreamDesc{{StreamName: "Watch", Handler: a.watch, ServerStreams: true}},
	}, a)
	down := make(chan error, 1)
	go func() { down <- srv.Serve(ln) }()
	fmt.Println("serving") // for what waits for it
	select {
	case err := <-down:
		return err
	case <-ctx.Done():
		return nil
	}
}
