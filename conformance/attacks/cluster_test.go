package attacks

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

var (
	attackTime = flag.Duration("attacks.time", time.Second, "how long each crowd attacks, at least")
	atOnce     = flag.Int("attacks.crowd", 0, "how many clients of each crowd dial at once, before it goes at its pace; up to 2000")
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

	anothers string // a join token of a server that no attacker is

	calm  rotated   // how long rotations take when there was no attack, at last
	dials int       // of the crowds
	table []figures // one line an attack
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

// newCluster bootstraps a cluster of the honest servers.
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

// join has the fourth server join, and kills it when it is a member. Its KEK is away: it holds no key,
// and is no voter.
func (c *cluster) join(t *testing.T) {
	t.Helper()
	c.honest[0].must(t, "Token", "s8", &c.anothers) // now: later a server that is down would have to answer
	c.honest[0].must(t, "Add", map[string]any{"ID": stolen, "Addr": c.fourth.addr}, nil)
	c.start(c.fourth, nil, true)
	c.fourth.must(t, "Goroutines", nil, new(int)) // it answers when it has joined
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
			join = append(join, string(h.id)+"@"+h.addr)
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
	began := time.Now()
	defer func() {
		if took := time.Since(began); took > time.Second {
			t.Logf("it takes %v until %s", took.Round(time.Millisecond), what)
		}
	}()
	for end := began.Add(time.Minute); !holds(); {
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
