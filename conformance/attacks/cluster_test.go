package attacks

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

var (
	attackTime = flag.Duration("attacks.time", 3*time.Second, "how long each crowd attacks")
	serverRace = flag.Bool("attacks.race", false, "servers have the race detector, and no bound on their memory")
)

const (
	clusterName = "attacked"
	callTime    = 20 * time.Second // longer than a server takes for a call
)

// program is the server's.
var program string

// TestMain builds it without the race detector, unless that is asked for: its memory is measured.
func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "attacks-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "server")
	args := []string{"build", "-o", program}
	if *serverRace {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "./server")...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v: %s", err, out)
		return 1
	}
	return m.Run()
}

// stolen is the member of which the attacker has all but the process.
const stolen = raft.ServerID("s4")

// cluster is three honest servers, and a fourth that the attacker has taken over: it is a member, and
// its process does not run.
type cluster struct {
	t      *testing.T
	dir    string
	ca     *keyringtest.CA
	honest []*process
	fourth *process
}

// process is the test's end of a server.
type process struct {
	id   raft.ServerID
	addr string
	cmd  *exec.Cmd
	rpc  *rpc.Client
	log  *log
	gone chan struct{} // closed when it has ended
}

// log is what a server writes. It keeps all of it.
type log struct {
	mu sync.Mutex // guards below
	b  bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// since returns what was written after the first n bytes.
func (l *log) since(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b.Bytes()[n:])
}

// newCluster founds a cluster of the honest servers.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), ca: keyringtest.NewCA(t)}
	peers := map[raft.ServerID]string{}
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		p := &process{id: id, addr: c.freeAddr(), log: new(log)}
		peers[id], c.honest = p.addr, append(c.honest, p)
	}
	c.fourth = &process{id: stolen, addr: c.freeAddr(), log: new(log)}
	for _, p := range c.honest {
		c.start(p, peers, false)
	}
	c.settle(t)
	t.Cleanup(func() {
		for _, p := range append(c.honest, c.fourth) {
			p.kill()
		}
	})
	return c
}

// join has the fourth server join, with its KEK away or not, and kills it when it is a member.
func (c *cluster) join(t *testing.T, away bool) {
	t.Helper()
	c.honest[0].must(t, "Add", map[string]any{"ID": stolen, "Addr": c.fourth.addr}, nil)
	c.start(c.fourth, nil, away)
	if c.fourth.must(t, "Goroutines", nil, new(int)); away {
		c.fourth.kill()
		return
	}
	c.await(t, "the fourth server is a voter", func() bool {
		s := c.honest[0].status(t)
		i := slices.IndexFunc(s.Servers, func(s raft.Server) bool { return s.ID == stolen })
		return i >= 0 && s.Servers[i].Suffrage == raft.Voter
	})
	c.fourth.kill()
}

func (c *cluster) freeAddr() string {
	ln := keyringtest.Listen(c.t)
	defer ln.Close()
	return ln.Addr().String()
}

// source is the TLS configuration of a server of the cluster, with that ID.
func (c *cluster) source(id string) func() (*tls.Config, error) {
	return c.ca.Source("keyring://"+clusterName+"/server/"+id, nil)
}

// start starts a server on what is in its directory, and waits for nothing.
func (c *cluster) start(p *process, peers map[raft.ServerID]string, away bool) {
	c.t.Helper()
	conf, err := c.source(string(p.id))()
	if err != nil {
		c.t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(conf.Certificates[0].PrivateKey)
	if err != nil {
		c.t.Fatal(err)
	}
	var join []string
	if peers == nil {
		for _, h := range c.honest {
			join = append(join, h.addr)
		}
	}
	cmd := exec.Command(program)
	cmd.Stderr = p.log
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	json.NewEncoder(in).Encode(map[string]any{ // if this fails, so does the first call
		"ID": p.id, "Dir": filepath.Join(c.dir, string(p.id)), "Addr": p.addr, "Cluster": clusterName, "Away": away,
		"CA": c.ca.Cert.Raw, "Cert": conf.Certificates[0].Certificate[0], "Key": key, "Peers": peers, "Join": join,
	})
	p.cmd, p.gone = cmd, make(chan struct{})
	p.rpc = jsonrpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{out, in})
	go func(cmd *exec.Cmd, gone chan struct{}) { // ends with the process
		cmd.Wait() // how it ended is in its log
		close(gone)
	}(cmd, p.gone)
}

func (p *process) running() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	p.cmd.Process.Kill() // an error says that it has ended
	<-p.gone
	p.rpc.Close()
}

// call calls a method of the server.
func (p *process) call(method string, in, out any) error {
	if in == nil {
		in = struct{}{}
	}
	if out == nil {
		out = new(struct{})
	}
	call := p.rpc.Go("Server."+method, in, out, make(chan *rpc.Call, 1))
	late := time.NewTimer(callTime)
	defer late.Stop()
	select {
	case <-call.Done:
		if call.Error != nil {
			return fmt.Errorf("%s: %s: %w", p.id, method, call.Error)
		}
		return nil
	case <-late.C:
		return fmt.Errorf("%s: %s: no answer in %v", p.id, method, callTime)
	}
}

// must is call, without which there is no test.
func (p *process) must(t *testing.T, method string, in, out any) {
	t.Helper()
	if err := p.call(method, in, out); err != nil {
		t.Fatal(err)
	}
}

func (p *process) status(t *testing.T) (s keyring.Status) {
	t.Helper()
	p.must(t, "Status", nil, &s)
	return s
}

// ring is what the server's FSM has.
func (p *process) ring(t *testing.T) *meta.Ring {
	t.Helper()
	var section []byte
	p.must(t, "Ring", nil, &section)
	start := bytes.Index(section, []byte(`{"version"`)) // after the magic, the length and the sum
	ring, err := meta.Decode(section[max(0, start):])
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// await waits until a condition holds, and looks again and again: what it is about is not in this
// process.
func (c *cluster) await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); {
		if time.Now().After(end) {
			for _, p := range append(c.honest, c.fourth) {
				t.Logf("%s wrote: %s", p.id, tail(p.log.since(0)))
			}
			t.Fatalf("it is never so that %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// settle waits until all honest servers are ready and agree on who leads. One that has died is started
// again, so that one hole does not hide another.
func (c *cluster) settle(t *testing.T) {
	t.Helper()
	for _, p := range c.honest {
		if !p.running() {
			c.start(p, map[raft.ServerID]string{p.id: p.addr}, false)
		}
	}
	c.await(t, "all honest servers are ready and follow one leader", func() bool {
		leaders := map[raft.ServerID]bool{}
		for _, p := range c.honest {
			var s keyring.Status
			if p.call("Status", nil, &s) != nil || !s.Ready || s.Leader == "" || len(s.Missing) > 0 {
				return false
			}
			leaders[s.Leader] = true
		}
		return len(leaders) == 1
	})
	for _, p := range c.honest {
		p.must(t, "Encrypt", []byte("x"), new([]byte))
	}
}

// leader is the server that the honest ones take for it.
func (c *cluster) leader(t *testing.T) *process {
	t.Helper()
	id := c.honest[0].status(t).Leader
	i := slices.IndexFunc(c.honest, func(p *process) bool { return p.id == id })
	if i < 0 {
		t.Fatalf("the leader is %q", id)
	}
	return c.honest[i]
}

// facts are what an attack must not change.
type facts struct {
	term    uint64
	servers string // raft's configuration
	rings   map[raft.ServerID]string
}

func (c *cluster) facts(t *testing.T) (f facts) {
	t.Helper()
	f.rings = map[raft.ServerID]string{}
	c.leader(t).must(t, "Term", nil, &f.term)
	for _, p := range c.honest {
		var ring []byte
		p.must(t, "Ring", nil, &ring)
		f.rings[p.id] = string(ring)
		f.servers = fmt.Sprint(p.status(t).Servers)
	}
	return f
}

// same complains about everything that an attack has changed.
func (f facts) same(t *testing.T, after facts) {
	t.Helper()
	if after.term > f.term+attackTerm/2 {
		t.Errorf("term %d has become %d, which is the attacker's", f.term, after.term)
	} else if after.term > f.term {
		t.Logf("term %d has become %d", f.term, after.term) // a busy machine is enough for that
	}
	if f.servers != after.servers {
		t.Errorf("configuration %s has become %s", f.servers, after.servers)
	}
	for id, ring := range f.rings {
		if ring != after.rings[id] {
			t.Errorf("ring of %s has become %q, was %q", id, after.rings[id], ring)
		}
	}
}

// usage is what a server uses of its machine.
type usage struct{ goroutines, descriptors, memory int }

func (p *process) usage(t *testing.T) (u usage) {
	t.Helper()
	p.must(t, "Goroutines", nil, &u.goroutines)
	files, err := os.ReadDir(p.proc("fd"))
	if err != nil {
		t.Fatal(err)
	}
	u.descriptors, u.memory = len(files), p.memory(t, "VmRSS")
	return u
}

func (p *process) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), name)
}

// memory reads a line of the process's status, in MiB: VmRSS is what is resident, VmHWM the most that
// was since resetPeak. Garbage counts, for it can't be used elsewhere either.
func (p *process) memory(t *testing.T, line string) int {
	t.Helper()
	b, err := os.ReadFile(p.proc("status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), line+":")
	kib, err := strconv.Atoi(strings.Fields(rest + " ?")[0])
	if err != nil {
		t.Fatalf("%s of %s: %v", line, p.id, err)
	}
	return kib >> 10
}

func (p *process) resetPeak(t *testing.T) {
	t.Helper()
	p.must(t, "Rest", nil, nil)
	if err := os.WriteFile(p.proc("clear_refs"), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// What a server may use more than before: while it is attacked, and when that is over.
const (
	moreMemory = 64 // MiB
	// Members' own connections come and go: each server has a few to each other, of raft's and of
	// calls, with two goroutines each.
	moreGoroutines  = 24
	moreDescriptors = 8
	recoverWithin   = 5 * time.Second
)

// under runs an attack while the cluster serves, and holds the cluster against how it was before. The
// attack returns when the attacker has gone.
func (c *cluster) under(t *testing.T, attack func(t *testing.T)) {
	t.Helper()
	c.settle(t)
	before, used, logged := c.facts(t), map[*process]usage{}, map[*process]int{}
	for _, p := range c.honest {
		p.resetPeak(t)
		used[p], logged[p] = p.usage(t), len(p.log.since(0))
	}
	load := c.serve()
	began := time.Now()
	attack(t)
	lasted := time.Since(began)
	for _, p := range c.honest {
		if !p.running() {
			t.Errorf("%s has died: %s", p.id, head(p.log.since(logged[p])))
			load.stop(t)
			return
		}
		peak := p.memory(t, "VmHWM") - used[p].memory
		t.Logf("%s: %d MiB more at the peak, %d bytes logged in %v", p.id, peak, len(p.log.since(logged[p])), lasted.Round(time.Millisecond))
		if peak > moreMemory && !*serverRace {
			t.Errorf("%s: resident memory grew by %d MiB, at most %d are fine", p.id, peak, moreMemory)
		}
	}
	c.recovers(t, used)
	load.stop(t)
	c.settle(t)
	before.same(t, c.facts(t))
	for p, n := range logged {
		if s := p.log.since(n); strings.Contains(s, "panic") || strings.Contains(s, "DATA RACE") {
			t.Errorf("%s: %s", p.id, head(s[max(0, strings.Index(s, "panic")-200):]))
		}
	}
}

func head(s string) string { return s[:min(len(s), 4000)] }

// recovers waits until the servers use no more than before.
func (c *cluster) recovers(t *testing.T, before map[*process]usage) {
	t.Helper()
	began := time.Now()
	for {
		var errs []error
		for _, p := range c.honest {
			u, was := p.usage(t), before[p]
			if u.goroutines > was.goroutines+moreGoroutines || u.descriptors > was.descriptors+moreDescriptors {
				errs = append(errs, fmt.Errorf("%s: %d goroutines and %d descriptors, before %d and %d",
					p.id, u.goroutines, u.descriptors, was.goroutines, was.descriptors))
			}
		}
		if len(errs) == 0 {
			t.Logf("all is back %v after the attacker has gone", time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > recoverWithin {
			t.Error(errors.Join(errs...))
			return
		}
		<-time.After(50 * time.Millisecond)
	}
}

// load is calls to every server, all along.
type load struct {
	end  chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex // guards below
	errs []error
	took []time.Duration
}

// serve seals on each server in turn, and opens what it has got.
func (c *cluster) serve() *load {
	l := &load{end: make(chan struct{})}
	l.wg.Go(func() { l.write(c.honest) })
	for _, p := range c.honest {
		l.wg.Go(func() {
			ticks := time.NewTicker(20 * time.Millisecond)
			defer ticks.Stop()
			for {
				l.seal(p)
				select {
				case <-l.end:
					return
				case <-ticks.C:
				}
			}
		})
	}
	return l
}

// write has raft commit something: sealing needs no more than a leader.
func (l *load) write(honest []*process) {
	began := time.Now()
	for {
		for _, p := range honest {
			if p.call("Term", nil, new(uint64)) == nil { // it leads
				l.mu.Lock()
				l.took = append(l.took, time.Since(began))
				l.mu.Unlock()
				began = time.Now()
			}
		}
		select {
		case <-l.end:
			l.mu.Lock()
			l.took = append(l.took, time.Since(began))
			l.mu.Unlock()
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (l *load) seal(p *process) {
	began := time.Now()
	var ciphertext, plaintext []byte
	err := p.call("Encrypt", []byte("plaintext"), &ciphertext)
	took := time.Since(began)
	if err == nil {
		if err = p.call("Decrypt", ciphertext, &plaintext); err == nil && string(plaintext) != "plaintext" {
			err = fmt.Errorf("%s: opens to %q", p.id, plaintext)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.took = append(l.took, took); err != nil && len(l.errs) < 10 {
		l.errs = append(l.errs, err)
	}
}

// sealWithin is how long a call may wait when a leader is elected meanwhile.
const sealWithin = 5 * time.Second

func (l *load) stop(t *testing.T) {
	t.Helper()
	close(l.end)
	l.wg.Wait()
	slices.Sort(l.took)
	longest := l.took[len(l.took)-1]
	t.Logf("%d calls during the attack, half of them in %v, all in %v", len(l.took),
		l.took[len(l.took)/2].Round(10*time.Microsecond), longest.Round(time.Millisecond))
	if len(l.errs) > 0 || longest > sealWithin {
		t.Errorf("calls failed or took up to %v: %v", longest, errors.Join(l.errs...))
	}
}
