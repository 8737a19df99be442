package main

// Servers as processes, for the tests, and their API.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"example.com/keyring/examples/watchmap/processes"
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

// cluster is the servers of a test.
type cluster struct {
	*processes.Cluster
	servers map[string]*server
}

// server is one of them.
type server struct {
	*processes.Server
	c    *cluster
	http *http.Client
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return &cluster{processes.New(t, "watchmap"), map[string]*server{}}
}

// add makes a server that is not started.
func (c *cluster) add(id string) *server {
	c.T.Helper()
	s := &server{Server: c.Add(id), c: c}
	s.http = &http.Client{Transport: throughSocket(s.Dir)}
	c.servers[id] = s
	return s
}

// initial is the flag that bootstraps a cluster of these servers.
func initial(servers ...*server) string {
	var all []*processes.Server
	for _, s := range servers {
		all = append(all, s.Server)
	}
	return processes.Initial(all...)
}

// call asks a server, and decodes the answer into out unless that is nil.
func (s *server) call(method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(s.c.T.Context(), method, "http://watchmap"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(got)))
	}
	if err == nil && out != nil {
		err = json.Unmarshal(got, out)
	}
	if err != nil {
		return fmt.Errorf("%s: %s %s: %w", s.ID, method, path, err)
	}
	return nil
}

func (s *server) do(method, path string, body []byte, out any) {
	s.c.T.Helper()
	if err := s.call(method, path, body, out); err != nil {
		s.c.T.Fatal(err)
	}
}

// leader waits until a server knows of a leader that is not the one of that ID, and returns the leader.
func (s *server) leader(not string) *server {
	s.c.T.Helper()
	var id string
	s.do("GET", "/leader?not="+not, nil, &id)
	return s.c.servers[id]
}
