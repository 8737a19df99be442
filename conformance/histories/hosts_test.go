package histories

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/keyring"
)

// lab is hosts, each with one server, and the network between them.
type lab struct {
	t       *testing.T
	program string
	dir     string
	cluster cluster
	hosts   []*host
	net     *network       // nil where hosts can't have networks of their own
	wiped   map[*host]bool // those that may not vote again yet
	witness witness
	vault   vault
}

// cluster is cluster.json.
type cluster struct {
	Name    string                                  `json:"name"`
	Issuer  string                                  `json:"issuer"`
	Servers map[string]*struct{ Raft, HTTP string } `json:"servers"`
}

// host is a server and the network namespace that it is in.
type host struct {
	id     string
	addr   string   // of the API, on the host's own loopback
	netns  string   // its name, or nothing
	ns     *os.File // the namespace, to dial into
	link   string   // the root's end of its link
	client *http.Client
	kek    keyring.KEK
	log    *journal

	mu  sync.Mutex // guards below
	cmd *exec.Cmd
}

// program is controlplane, built once.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(buildDir, "controlplane")
	args := []string{"build", "-o", path}
	if *runRace {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "example.com/keyring/examples/controlplane")...)
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return path, nil
})

var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "histories"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// newLab makes the hosts and starts the servers.
func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: filepath.Join(t.TempDir(), "cluster"), wiped: map[*host]bool{}}
	var err error
	if l.program, err = program(); err != nil {
		t.Fatal(err)
	}
	l.must(l.program, "init", "-port", "0", "-servers", strconv.Itoa(*runServers), l.dir)
	if canCut() {
		l.net = newNetwork(l)
	} else if os.Getenv("CI") != "" {
		t.Fatal("this needs root, ip and tc")
	}
	l.configure()
	for _, h := range l.hosts {
		l.start(h)
		t.Cleanup(func() { h.signal(syscall.SIGCONT); h.kill() })
	}
	return l
}

func (l *lab) must(args ...string) {
	l.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// configure makes the hosts and their networks, and has cluster.json say so.
func (l *lab) configure() {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(b, &l.cluster)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	for i := range len(l.cluster.Servers) {
		h := &host{id: fmt.Sprintf("s%d", i+1)}
		h.addr = l.cluster.Servers[h.id].HTTP
		if h.kek, err = keyring.FileKEK(filepath.Join(l.dir, h.id+".kek")); err != nil {
			l.t.Fatal(err)
		}
		h.log = newJournal(l.t, h.id)
		l.hosts = append(l.hosts, h)
		if l.net != nil {
			l.net.attach(l, h, i+1)
			l.net.give(l, h)
		}
		h.client = &http.Client{
			Transport:     &http.Transport{DialContext: h.dial, MaxIdleConnsPerHost: 32},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	l.writeCluster()
}

// writeCluster replaces cluster.json whole: a server may be about to read it.
func (l *lab) writeCluster() {
	l.t.Helper()
	path := filepath.Join(l.dir, "cluster.json")
	b, err := json.Marshal(l.cluster)
	if err == nil {
		err = os.WriteFile(path+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// dial connects from within the host's namespace, as to a port on its own loopback.
func (h *host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return inNamespace(h.ns, func() (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, addr) })
}

// start starts the server, with the data that it has, and returns when its API listens.
func (l *lab) start(h *host) {
	l.t.Helper()
	active := l.witness.newest()
	args := []string{l.program, "serve", l.dir, h.id}
	if h.netns != "" {
		args = append([]string{"ip", "netns", "exec", h.netns}, args...) // which becomes the program
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "GORACE=exitcode=0") // the log is read for races
	cmd.Stderr = h.log
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		l.t.Fatal(err)
	}
	h.mu.Lock()
	h.cmd = cmd
	h.mu.Unlock()
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		h.kill()
		l.t.Fatalf("%s did not start: %v: %s", h.id, err, h.log.tail())
	}
	go io.Copy(io.Discard, stdout) // ends with the process
	l.catchesUp(h, active)
}

// wipe takes from a server that does not run all that it has, but for its certificate and its KEK.
func (l *lab) wipe(h *host) {
	l.t.Helper()
	l.wiped[h] = true
	l.vault.lose(h)
	if err := os.RemoveAll(filepath.Join(l.dir, h.id)); err != nil {
		l.t.Fatal(err)
	}
}

func (h *host) signal(s syscall.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil {
		h.cmd.Process.Signal(s)
	}
}

// kill ends the server with SIGKILL.
func (h *host) kill() {
	h.signal(syscall.SIGKILL)
	h.wait() // the error is the signal
}

// wait waits for the end of the server, and returns how it ended.
func (h *host) wait() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd == nil {
		return nil
	}
	err := h.cmd.Wait()
	h.cmd = nil
	return err
}

const closing = 15 * time.Second // that a server may take to end

// terminate ends the server with SIGTERM.
func (h *host) terminate() error {
	h.mu.Lock()
	process := h.cmd.Process
	h.mu.Unlock()
	process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(closing, func() { process.Signal(syscall.SIGQUIT) }) // it says what it does
	defer late.Stop()
	return h.wait()
}
