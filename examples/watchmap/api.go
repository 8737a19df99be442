package main

// The API for users, and what of it has to do with raft. It is on a unix socket in the server's directory: who may open that may
// do everything.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"example.com/keyring/examples/watchmap/store"
	"github.com/hashicorp/raft"
)

const (
	maxValue     = 1 << 20 // bytes
	applyTimeout = 5 * time.Second
)

// api answers users.
type api struct {
	*http.ServeMux
	raft  *raft.Raft
	store values
}

// values are what the API works on: a store.Store.
type values interface {
	Put(ctx context.Context, key string, value []byte) (version uint64, err error)
	Delete(ctx context.Context, key string) (version uint64, err error)
	Get(key string) (store.Entry, error)
	List(prefix string) iter.Seq[store.Entry]
	Next(ctx context.Context, watch string, after uint64) (news []store.Entry, err error)
}

func newAPI(r *raft.Raft, s values) api {
	a := api{http.NewServeMux(), r, s}
	a.routes()
	return a
}

// routes are the calls of the API.
func (a api) routes() {
	a.HandleFunc("PUT /values/{key...}", answer(func(r *http.Request) (any, error) {
		value, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxValue))
		if err != nil {
			return nil, err
		}
		return a.store.Put(r.Context(), r.PathValue("key"), value)
	}))
	a.HandleFunc("DELETE /values/{key...}", answer(func(r *http.Request) (any, error) {
		return a.store.Delete(r.Context(), r.PathValue("key"))
	}))
	a.HandleFunc("GET /values/{key...}", answer(func(r *http.Request) (any, error) {
		return a.store.Get(r.PathValue("key"))
	}))
	a.HandleFunc("GET /values", answer(func(r *http.Request) (any, error) {
		return slices.AppendSeq([]store.Entry{}, a.store.List(r.FormValue("prefix"))), nil
	}))
	a.HandleFunc("GET /watches/{name}", answer(func(r *http.Request) (any, error) {
		after, err := number(r, "after")
		if err != nil {
			return nil, err
		}
		return a.store.Next(r.Context(), r.PathValue("name"), after)
	}))
	a.HandleFunc("POST /watches/{name}", answer(func(r *http.Request) (any, error) {
		return a.watch(r)
	}))
	a.HandleFunc("GET /leader", answer(func(r *http.Request) (any, error) {
		return awaitLeader(r.Context(), a.raft, raft.ServerID(r.FormValue("not")))
	}))
	a.HandleFunc("POST /snapshot", answer(func(*http.Request) (any, error) {
		return nil, a.raft.Snapshot().Error()
	}))
}

// watch makes, moves or ends a watch: op is watch, with a prefix, seen, with a version, or unwatch.
func (a api) watch(r *http.Request) (any, error) {
	version, err := number(r, "version")
	if err != nil {
		return nil, err
	}
	op := r.FormValue("op")
	if op != "watch" && op != "seen" && op != "unwatch" {
		return nil, fmt.Errorf("op %q is none of watch, seen, unwatch", op)
	}
	c := store.Command{Op: op, Key: r.PathValue("name"), Prefix: r.FormValue("prefix"), Version: version}
	f := a.raft.Apply(c.Encode(), applyTimeout)
	if err := f.Error(); err != nil {
		return nil, err
	}
	refused, _ := f.Response().(error)
	return nil, refused
}

// number is a parameter of a request. Without it, it is zero.
func number(r *http.Request, name string) (uint64, error) {
	if r.FormValue(name) == "" {
		return 0, nil
	}
	return strconv.ParseUint(r.FormValue(name), 10, 64)
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

// answer makes a handler of a function that returns what to answer with, in JSON.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		got, err := f(r)
		switch {
		case errors.Is(err, store.ErrNoKey), errors.Is(err, store.ErrNoWatch):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			json.NewEncoder(w).Encode(got)
		}
	}
}

// serve answers until ctx ends, and waits for the calls under way.
func (a api) serve(ctx context.Context, cfg config) error { return serveHTTP(ctx, cfg, a) }

// serveHTTP answers on the server's socket until ctx ends, and waits for the calls under way.
func serveHTTP(ctx context.Context, cfg config, h http.Handler) error {
	socket := cfg.path("api.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of a process that was killed
		return err
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	calls, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	srv := &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return calls }}
	down := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		end() // of the calls that wait for a write
		down <- srv.Shutdown(context.WithoutCancel(ctx))
	})
	fmt.Println("serving") // for what waits for it
	if err := srv.Serve(ln); stop() {
		return err // it has failed
	}
	return <-down
}

// throughSocket carries the requests to the server in a directory.
func throughSocket(dir string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "api.sock"))
	}}
}
