package page_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// serverTime is for a condition of the servers, longer than an election.
const serverTime = 20 * time.Second

// binary is the control plane, built once.
var binary struct {
	sync.Once
	dir string
	err error
}

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "4") // they wait more than they work; the command line may have another
	code := m.Run()
	if binary.dir != "" {
		os.RemoveAll(binary.dir)
	}
	os.Exit(code)
}

// controlplane returns the path of the program.
func controlplane(t *testing.T) string {
	t.Helper()
	binary.Do(func() {
		if binary.dir, binary.err = os.MkdirTemp("", "page"); binary.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", binary.dir, "example.com/keyring/examples/controlplane")
		cmd.Dir = "../.." // the module that has it
		if out, err := cmd.CombinedOutput(); err != nil {
			binary.err = fmt.Errorf("build the control plane: %w: %s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return filepath.Join(binary.dir, "controlplane")
}

// servers are three servers of a control plane, each a process.
type servers struct {
	t       *testing.T
	dir     string
	urls    map[string]string // of their APIs and pages, by ID
	running map[string]*exec.Cmd
}

// status is what the tests want to know of a server.
type status struct {
	ID, Leader string
	Ready      bool
	Secrets    int
	Keys       []key
}

type key struct {
	ID, State string
	Secrets   int `json:"records"`
}

// start starts three servers, and waits until one of them leads and has an active key, which all
// have. flags are those of serve, by ID.
func start(t *testing.T, flags map[string][]string) *servers {
	t.Helper()
	s := &servers{t: t, dir: filepath.Join(t.TempDir(), "data"), urls: map[string]string{}, running: map[string]*exec.Cmd{}}
	if out, err := exec.Command(controlplane(t), "init", "-port", "0", s.dir).CombinedOutput(); err != nil {
		t.Fatalf("init: %v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(s.dir, "cluster.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Servers map[string]struct{ HTTP string }
	}
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, id := range slices.Collect(maps.Keys(s.running)) {
			s.kill(id)
		}
	})
	for id, server := range c.Servers {
		s.urls[id] = "http://" + server.HTTP
		s.serve(id, flags[id]...)
	}
	for id := range s.urls {
		s.await(id, "an active key", func(st status) bool {
			return st.Ready && st.Leader != "" && len(st.Keys) == 1 && st.Keys[0].State == "active"
		})
	}
	return s
}

// serve starts a server, or starts it again with the data it has. It returns when it listens.
func (s *servers) serve(id string, flags ...string) {
	s.t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(controlplane(s.t), slices.Concat([]string{"serve"}, flags, []string{s.dir, id})...)
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		s.t.Fatalf("%s did not start: %v: %s", id, cmd.Wait(), &log)
	}
	s.running[id] = cmd
}

// in returns the servers for a subtest.
func (s servers) in(t *testing.T) *servers {
	s.t = t
	return &s
}

// kill kills a server with SIGKILL, and waits until it is gone.
func (s *servers) kill(id string) {
	s.t.Helper()
	if err := s.running[id].Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	s.running[id].Wait() // the error is the signal
	delete(s.running, id)
}

// await returns a server's first status that is as wanted, from its stream of them.
func (s *servers) await(id, what string, wanted func(status) bool) status {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), serverTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", s.urls[id]+"/v1/watch", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var st status
	for in := json.NewDecoder(resp.Body); ; {
		if err := in.Decode(&st); err != nil {
			s.t.Fatalf("%s: no %s: %v; the last status: %+v", id, what, err, st)
		}
		if wanted(st) {
			return st
		}
	}
}

// roles returns the leader, as some running server knows it, and the two others.
func (s *servers) roles() (leader string, followers []string) {
	s.t.Helper()
	for id := range s.running {
		leader = s.await(id, "leader", func(st status) bool { return st.Leader != "" }).Leader
		break
	}
	ids := slices.Sorted(maps.Keys(s.urls))
	return leader, slices.DeleteFunc(ids, func(id string) bool { return id == leader })
}

// call calls the API of a server, and follows it to the leader.
func (s *servers) call(id, method, path string, in, out any) {
	s.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.urls[id]+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		s.t.Fatal(err)
	}
}

// status returns what a server says of itself.
func (s *servers) status(id string) (out status) {
	s.t.Helper()
	s.call(id, "GET", "/v1/status", nil, &out)
	return out
}

// put puts n secrets, several at a time, each at a path of its own.
func (s *servers) put(n int) {
	s.t.Helper()
	leader, _ := s.roles()
	var wg sync.WaitGroup
	failed := make([]error, 8)
	for w := range failed {
		wg.Go(func() {
			for i := w; i < n && failed[w] == nil; i += len(failed) {
				failed[w] = s.putAt(leader, fmt.Sprintf("app/%04d", i))
			}
		})
	}
	wg.Wait()
	for _, err := range failed {
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// putAt puts one secret on the leader.
func (s *servers) putAt(leader, path string) error {
	req, err := http.NewRequestWithContext(s.t.Context(), "PUT", s.urls[leader]+"/v1/secrets/"+url.PathEscape(path), strings.NewReader(`{"value": "a secret"}`))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("put %s: %s", path, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
