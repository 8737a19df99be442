package main

// Servers as processes, for the tests, and their API.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"example.com/keyring/admin"
	"example.com/keyring/examples/watchmap/processes"
	"example.com/keyring/examples/watchmap/store"
)

// TestMain makes the test binary a server too: of the service as it is, or as it was before.
func TestMain(m *testing.M) {
	processes.Main(m, map[string]func(){"now": main, "before": mainBefore})
}

// mainBefore is main as it was.
func mainBefore() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg, _, err := parse(os.Args[1:])
	d, opening := openDisk(cfg)
	if err = errors.Join(err, opening); err == nil {
		err = errors.Join(serveBefore(ctx, cfg, d), d.log.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// ofUsers is where users reached the server whose raft has an address, before.
func ofUsers(addr string) string {
	host, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return net.JoinHostPort(host, strconv.Itoa(n-1000)) // which nobody else has: see processes.Cluster.Add
}

// cluster is the servers of a test.
type cluster struct {
	*processes.Cluster
	servers map[string]*server
}

// server is one of them.
type server struct {
	*processes.Server
	c         *cluster
	users     client
	operators *admin.Client
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return &cluster{processes.New(t, "watchmap"), map[string]*server{}}
}

// add makes a server that is not started.
func (c *cluster) add(id string) *server {
	c.T.Helper()
	s := &server{Server: c.Add(id), c: c}
	socket := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.Dir, "admin.sock"))
	}
	var err error
	s.operators, err = admin.NewClient("http://watchmap", &http.Client{Transport: &http.Transport{DialContext: socket}})
	if err != nil {
		c.T.Fatal(err)
	}
	c.servers[id] = s
	return s
}

// start starts a server, and connects a user to it.
func (s *server) start(build string, args ...string) {
	s.c.T.Helper()
	s.Start(build, args...)
	at := s.Addr
	if build == "before" {
		at = ofUsers(at)
	}
	var err error
	if s.users, err = (config{dir: s.Dir}).dial(at); err != nil {
		s.c.T.Fatal(err)
	}
	s.c.T.Cleanup(func() { s.users.Close() })
}

// do makes a call of a user's.
func (s *server) do(call string, request store.Command, out any) {
	s.c.T.Helper()
	if err := s.users.call(s.c.T.Context(), call, request, out); err != nil {
		s.c.T.Fatalf("%s: %s: %v", s.ID, call, err)
	}
}

// initial is the flag that bootstraps a cluster of these servers.
func initial(servers ...*server) string {
	var all []*processes.Server
	for _, s := range servers {
		all = append(all, s.Server)
	}
	return processes.Initial(all...)
}

// leader waits until a server knows of a leader that is not the one of that ID, and returns the leader.
func (s *server) leader(not string) *server {
	s.c.T.Helper()
	var id string
	s.do("Leader", store.Command{Key: not}, &id)
	return s.c.servers[id]
}

// ready waits until the servers hold the active key, and returns the leader.
func (s *server) ready(all ...*server) *server {
	s.c.T.Helper()
	for _, s := range all {
		s.do("Ready", store.Command{}, new(any))
	}
	return s.leader("")
}

// follow has the next messages of a watch sent to a channel, which is closed at their end.
func (s *server) follow(watch string, after uint64) <-chan []store.Entry {
	messages := make(chan []store.Entry)
	ctx := s.c.T.Context()
	go func() {
		defer close(messages)
		s.users.watch(ctx, watch, after, func(news []store.Entry) error {
			select {
			case messages <- news:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return messages
}

// awaitVersion waits until a server has what was written at a version.
func (s *server) awaitVersion(version uint64) {
	s.c.T.Helper()
	enough := errors.New("enough")
	err := s.users.watch(s.c.T.Context(), "all", version-1, func([]store.Entry) error { return enough })
	if !errors.Is(err, enough) {
		s.c.T.Fatalf("%s: %v", s.ID, err)
	}
}

// event is a line of the audit.
type event struct{ Step, Key string }

// awaitStep waits until a server has said that a key has come to a step, and returns the key. An empty key is any.
func (s *server) awaitStep(step, key string) string {
	s.c.T.Helper()
	var e event
	s.Await(step+" "+key, func(line string) bool {
		return json.Unmarshal([]byte(line), &e) == nil && e.Step == step && (key == "" || e.Key == key)
	})
	return e.Key
}

// under is how many values a server has that are encrypted under a key.
func (s *server) under(key string) int {
	s.c.T.Helper()
	status, err := s.operators.Status(s.c.T.Context())
	if err != nil {
		s.c.T.Fatal(err)
	}
	for _, k := range status.Keys {
		if k.ID == key {
			return k.Records
		}
	}
	return 0
}

// snapshot has raft make one, and returns it.
func (s *server) snapshot() string {
	s.c.T.Helper()
	s.do("Snapshot", store.Command{}, new(any))
	files, err := filepath.Glob(filepath.Join(s.Dir, "raft", "snapshots", "*", "state.bin"))
	if err != nil || len(files) == 0 {
		s.c.T.Fatal(files, err)
	}
	b, err := os.ReadFile(files[len(files)-1])
	if err != nil {
		s.c.T.Fatal(err)
	}
	return string(b)
}

// run runs a command of an operator's, for a server.
func (c *cluster) run(s *server, args ...string) {
	c.T.Helper()
	if err := run(c.T.Context(), append([]string{"-id", s.ID, "-dir", s.Dir, "-addr", s.Addr}, args...)); err != nil {
		c.T.Fatalf("%s: %s: %v", s.ID, strings.Join(args, " "), err)
	}
}
