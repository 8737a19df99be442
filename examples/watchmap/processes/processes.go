// Package processes runs the servers of a service as processes, for its tests: their certificates, how they start, what they write,
// and how they end.
package processes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// childEnv makes the test binary a server, of that build.
const childEnv = "KEYRING_TEST_SERVER"

// Main is for TestMain. Builds are the programs that a process of the test may be, by name.
func Main(m *testing.M, builds map[string]func()) {
	run := builds[os.Getenv(childEnv)]
	if run == nil {
		os.Exit(m.Run())
	}
	go func() { // no server outlives the test
		io.Copy(io.Discard, os.Stdin)
		os.Exit(2)
	}()
	run()
}

// Cluster is the servers of a test, each with its directory, certificate and KEK.
type Cluster struct {
	T    *testing.T
	Dir  string // of all of them
	dirs int    // that were made in it
	name string // in the certificates
	ca   authority
}

// Server is one of them. Its process may have ended.
type Server struct {
	c    *Cluster
	ID   string
	Addr string // which nobody else has
	Dir  string // with ca.crt, tls.crt, tls.key and kek
	proc *process
}

// New returns a cluster of that name, without servers.
func New(t *testing.T, name string) *Cluster {
	t.Helper()
	return &Cluster{T: t, Dir: t.TempDir(), name: name, ca: newAuthority(t, name)}
}

// Add makes the directory of a server that is not started: its certificate, the CA's, and a KEK.
func (c *Cluster) Add(id string) *Server {
	c.T.Helper()
	s := &Server{c: c, ID: id, Addr: freeAddr(c.T), Dir: filepath.Join(c.Dir, fmt.Sprint(id, "-", c.dirs))}
	c.dirs++
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		c.T.Fatal(err)
	}
	for name, content := range c.files(s) {
		if err := os.WriteFile(filepath.Join(s.Dir, name), content, 0o600); err != nil {
			c.T.Fatal(err)
		}
	}
	return s
}

var addrs atomic.Int32 // that were given out

// freeAddr is an address at which nobody listens, and that nobody is given meanwhile: of 127.0.0.0/8, where Linux has all of it, at
// a port below those that connections are given, and by the process.
func freeAddr(t *testing.T) string {
	t.Helper()
	if pid := os.Getpid(); runtime.GOOS == "linux" && pid < 1<<22 {
		return fmt.Sprintf("127.%d.%d.%d:%d", 64+pid>>16, pid>>8&255, pid&255, 7900+addrs.Add(1))
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// Initial is the flag that bootstraps a cluster of these servers.
func Initial(servers ...*Server) string {
	var all []string
	for _, s := range servers {
		all = append(all, s.ID+"@"+s.Addr)
	}
	return "-initial=" + strings.Join(all, ",")
}

// process is a server that runs, or has.
type process struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	err  error         // how

	mu    sync.Mutex // guards below
	lines []string   // of its output
	more  chan struct{}
}

// Start starts a server with one of the builds of Main, and waits until it writes "serving".
func (s *Server) Start(build string, args ...string) {
	s.c.T.Helper()
	s.launch(build, args...)
	s.Await("its start", func(line string) bool { return line == "serving" })
}

// launch starts a server.
func (s *Server) launch(build string, args ...string) {
	s.c.T.Helper()
	self, err := os.Executable()
	if err != nil {
		s.c.T.Fatal(err)
	}
	p := &process{gone: make(chan struct{}), more: make(chan struct{})}
	p.cmd = exec.Command(self, append([]string{"-id", s.ID, "-dir", s.Dir, "-addr", s.Addr}, args...)...)
	p.cmd.Env = append(os.Environ(), childEnv+"="+build)
	_, noInput := p.cmd.StdinPipe() // which ends with the test
	out, err := p.cmd.StdoutPipe()
	p.cmd.Stderr = p.cmd.Stdout
	if err = errors.Join(err, noInput); err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		s.c.T.Fatal(err)
	}
	go func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			p.add(in.Text())
		}
		if p.err = p.cmd.Wait(); p.err != nil {
			p.err = fmt.Errorf("%s: %w", s.ID, p.err)
		}
		close(p.gone)
	}()
	s.proc = p
	s.c.T.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.gone
		if s.c.T.Failed() {
			s.c.T.Logf("%s wrote:\n%s", s.ID, strings.Join(p.lines, "\n"))
		}
	})
}

func (p *process) add(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, line)
	close(p.more)
	p.more = make(chan struct{})
}

// Await waits until a server has written such a line, and returns that.
func (s *Server) Await(what string, is func(line string) bool) string {
	s.c.T.Helper()
	p := s.proc
	for seen := 0; ; {
		p.mu.Lock()
		lines, more := p.lines, p.more
		p.mu.Unlock()
		for ; seen < len(lines); seen++ {
			if is(lines[seen]) {
				return lines[seen]
			}
		}
		select {
		case <-more:
		case <-p.gone:
			s.c.T.Fatalf("%s has ended before %s: %v", s.ID, what, p.err)
		case <-s.c.T.Context().Done():
			s.c.T.Fatal(context.Cause(s.c.T.Context()))
		}
	}
}

// Stop ends a server as an operator does.
func (s *Server) Stop() {
	s.c.T.Helper()
	if err := s.proc.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.c.T.Fatal(err)
	}
	if <-s.proc.gone; s.proc.err != nil {
		s.c.T.Errorf("%s has ended with %v", s.ID, s.proc.err)
	}
}

// Kill ends a server as a power cut does.
func (s *Server) Kill() {
	s.c.T.Helper()
	if err := s.proc.cmd.Process.Kill(); err != nil {
		s.c.T.Fatal(err)
	}
	<-s.proc.gone
}
