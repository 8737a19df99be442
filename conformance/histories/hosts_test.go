package histories

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const servers = 3

// lab is three hosts, each with one server, and the network between them.
type lab struct {
	t         *testing.T
	program   string
	dir       string
	hosts     []*host
	partition bool // the hosts have networks of their own, that can be cut
}

// host is a server and the network namespace that it is in.
type host struct {
	id     string
	addr   string   // of the API, on the host's own loopback
	netns  string   // its name, or nothing
	ns     *os.File // the namespace, to dial into
	link   string   // the root's end of its link
	client *http.Client

	mu  sync.Mutex // guards below
	cmd *exec.Cmd
	log bytes.Buffer
}

// newLab builds the program, makes the hosts, and starts the servers.
func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: filepath.Join(t.TempDir(), "cluster"), program: filepath.Join(t.TempDir(), "controlplane")}
	build := exec.Command("go", "build", "-o", l.program, "example.com/keyring/examples/controlplane")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	l.must(l.program, "init", "-port", "0", l.dir)
	_, err := exec.LookPath("ip")
	l.partition = err == nil && os.Geteuid() == 0
	if !l.partition && os.Getenv("CI") != "" {
		t.Fatal("this needs root and ip")
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

// configure makes the networks and has cluster.json say so.
func (l *lab) configure() {
	l.t.Helper()
	path := filepath.Join(l.dir, "cluster.json")
	b, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	var c struct {
		Name    string                                  `json:"name"`
		Issuer  string                                  `json:"issuer"`
		Servers map[string]*struct{ Raft, HTTP string } `json:"servers"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		l.t.Fatal(err)
	}
	subnet, bridge := os.Getpid()%250, fmt.Sprintf("kr%d", os.Getpid())
	if l.partition {
		l.must("ip", "link", "add", bridge, "type", "bridge")
		l.t.Cleanup(func() { exec.Command("ip", "link", "del", bridge).Run() })
		l.must("ip", "link", "set", bridge, "up")
	}
	for i := range servers {
		h := &host{id: fmt.Sprintf("s%d", i+1)}
		h.addr = c.Servers[h.id].HTTP
		l.hosts = append(l.hosts, h)
		if l.partition {
			addr := fmt.Sprintf("10.77.%d.%d", subnet, i+1)
			c.Servers[h.id].Raft = addr + ":7000"
			h.netns, h.link = fmt.Sprintf("%s-%d", bridge, i+1), fmt.Sprintf("%s-%d", bridge, i+1)
			l.network(h, bridge, addr)
		}
		h.client = &http.Client{
			Transport:     &http.Transport{DialContext: h.dial, MaxIdleConnsPerHost: 32},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	if b, err = json.Marshal(c); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// network makes a host's namespace, and its link to the bridge.
func (l *lab) network(h *host, bridge, addr string) {
	l.t.Helper()
	l.must("ip", "netns", "add", h.netns)
	l.t.Cleanup(func() { exec.Command("ip", "netns", "del", h.netns).Run() }) // and its link
	for _, args := range []string{
		"link add " + h.link + " type veth peer name eth0 netns " + h.netns,
		"link set " + h.link + " master " + bridge + " up",
		"-n " + h.netns + " addr add " + addr + "/24 dev eth0",
		"-n " + h.netns + " link set eth0 up",
		"-n " + h.netns + " link set lo up",
	} {
		l.must(append([]string{"ip"}, strings.Fields(args)...)...)
	}
	var err error
	if h.ns, err = os.Open(filepath.Join("/run/netns", h.netns)); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { h.ns.Close() })
}

// dial connects to a port on the host's own loopback. Its thread goes into the namespace to make the
// socket, and is thrown away with the goroutine that never unlocks it.
func (h *host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if h.ns == nil {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	type result struct {
		net.Conn
		error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		done <- result{c, err}
	}()
	r := <-done
	return r.Conn, r.error
}

// start starts the server, with the data that it has, and returns when its API listens.
func (l *lab) start(h *host) {
	l.t.Helper()
	args := []string{l.program, "serve", l.dir, h.id}
	if h.netns != "" {
		args = append([]string{"ip", "netns", "exec", h.netns}, args...) // which becomes the program
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = &h.log
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
		l.t.Fatalf("%s did not start: %v: %s", h.id, err, &h.log)
	}
	go io.Copy(io.Discard, stdout) // ends with the process
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
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil {
		h.cmd.Wait() // the error is the signal
		h.cmd = nil
	}
}

// cut takes a host off the network, or puts it back.
func (l *lab) cut(h *host, off bool) {
	how := "up"
	if off {
		how = "down"
	}
	l.must("ip", "link", "set", h.link, how)
}
