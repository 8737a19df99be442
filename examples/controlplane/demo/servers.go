package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	rate     = "400"            // secrets a second: slow enough to kill leaders in between
	callTime = 10 * time.Second // for one call, longer than an election
)

// demo is the servers' processes and what they say of themselves.
type demo struct {
	out     io.Writer
	began   time.Time
	dir     string
	program string
	urls    map[string]string // of the servers' APIs, by ID

	mu      sync.Mutex // guards below
	servers map[string]*process
	views   map[string]status // of those that answer
	changed chan struct{}     // closed at the next change
}

// process is a server.
type process struct {
	cmd     *exec.Cmd
	log     bytes.Buffer  // what it wrote to standard error; read when it has ended
	watched chan struct{} // closed when its stream of statuses has ended
}

// status is what the demo wants to know of a server.
type status struct {
	ID, Leader string
	Ready      bool
	Index      uint64
	Secrets    int
	Keys       []keyStatus
}

type keyStatus struct {
	ID, State string
	Secrets   int `json:"records"`
	Holders   []string
}

// under returns how many secrets are sealed under a key.
func (s status) under(key string) int {
	for _, k := range s.Keys {
		if k.ID == key {
			return k.Secrets
		}
	}
	return 0
}

// has reports whether a key is in a state.
func (s status) has(state string) bool {
	return slices.ContainsFunc(s.Keys, func(k keyStatus) bool { return k.State == state })
}

// build builds the control plane and has it make what its servers need.
func (d *demo) build(ctx context.Context) error {
	d.servers, d.views, d.changed = map[string]*process{}, map[string]status{}, make(chan struct{})
	for _, args := range [][]string{
		{"go", "build", "-o", d.program, "example.com/keyring/examples/controlplane"},
		{d.program, "init", "-port", "0", d.dir},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args[:2], " "), err, out)
		}
	}
	b, err := os.ReadFile(filepath.Join(d.dir, "cluster.json"))
	if err != nil {
		return err
	}
	var c struct {
		Servers map[string]struct{ HTTP string }
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	d.urls = map[string]string{}
	for id, s := range c.Servers {
		d.urls[id] = "http://" + s.HTTP
	}
	return nil
}

func (d *demo) ids() []string        { return slices.Sorted(maps.Keys(d.urls)) }
func (d *demo) url(id string) string { return d.urls[id] }

// start starts a server, or starts it again with the data it has. It returns when it listens.
func (d *demo) start(id string) error {
	p := &process{cmd: exec.Command(d.program, "serve", "-rate", rate, d.dir, id), watched: make(chan struct{})}
	p.cmd.Stderr = &p.log
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		return fmt.Errorf("%s did not start: %w: %s", id, p.cmd.Wait(), &p.log)
	}
	d.update(func() { d.servers[id] = p })
	go d.watch(id, p)
	return nil
}

// watch takes a server's statuses until the server is gone.
func (d *demo) watch(id string, p *process) {
	defer close(p.watched)
	defer d.update(func() { delete(d.views, id) })
	resp, err := http.Get(d.url(id) + "/v1/watch")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	for in := json.NewDecoder(resp.Body); ; {
		var s status
		if in.Decode(&s) != nil {
			return
		}
		d.update(func() { d.views[id] = s })
	}
}

func (d *demo) update(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	close(d.changed)
	d.changed = make(chan struct{})
}

// look returns what the servers say, and what is closed when that is old.
func (d *demo) look() (map[string]status, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.views), d.changed
}

// await returns a status that is as wanted, and waits for it.
func (d *demo) await(ctx context.Context, wanted func(status) bool) (status, error) {
	for {
		views, changed := d.look()
		for _, s := range views {
			if wanted(s) {
				return s, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return status{}, context.Cause(ctx)
		}
	}
}

// leader returns the status of a leader that is also as wanted, if anything is.
func (d *demo) leader(ctx context.Context, wanted func(status) bool) (status, error) {
	return d.await(ctx, func(s status) bool { return s.Leader == s.ID && (wanted == nil || wanted(s)) })
}

// kill kills a server with SIGKILL and waits until it is gone.
func (d *demo) kill(id string) error {
	p := d.take(id)
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	<-p.watched
	p.cmd.Wait() // the error is the signal
	return nil
}

// stop ends all servers as an operator would, and waits for them.
func (d *demo) stop() error {
	var errs []error
	for _, id := range d.ids() {
		p := d.take(id)
		if p == nil {
			continue
		}
		p.cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(callTime, func() { p.cmd.Process.Kill() })
		<-p.watched
		if err := p.cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: %s", id, err, &p.log))
		}
		kill.Stop()
	}
	return errors.Join(errs...)
}

func (d *demo) take(id string) (p *process) {
	d.update(func() { p = d.servers[id]; delete(d.servers, id); delete(d.views, id) })
	return p
}

// call calls the API of a server.
func (d *demo) call(ctx context.Context, id, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, d.url(id)+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return json.Unmarshal(answer, out)
}
