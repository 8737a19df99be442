package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/rpc"
	"net/rpc/jsonrpc"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// members are the IDs of the servers. One that dies is replaced under the same ID.
var members = []raft.ServerID{"s1", "s2", "s3"}

// cluster is the servers' processes.
type cluster struct {
	*timeline
	dir string
	ca  *identity

	mu        sync.Mutex // guards below
	processes map[raft.ServerID]*process
}

// process is the parent's end of a server.
type process struct {
	id   raft.ServerID
	cmd  *exec.Cmd
	rpc  *rpc.Client
	gone chan struct{} // closed when it has ended
	err  error         // how; set before gone is closed
}

// found starts the servers. The first bootstraps the cluster, the others join.
func (c *cluster) found(ctx context.Context) error {
	for _, id := range members {
		if err := c.start(ctx, id); err != nil {
			return err
		}
	}
	return c.settle(ctx)
}

// replace kills a server, deletes all that it had, and has a fresh one join.
func (c *cluster) replace(ctx context.Context, id raft.ServerID) error {
	c.mu.Lock()
	p := c.processes[id]
	delete(c.processes, id) // first, so that the client does not ask it
	c.mu.Unlock()
	p.cmd.Process.Kill()
	<-p.gone
	c.say(id, "killed with SIGKILL")
	if err := os.RemoveAll(c.data(id)); err != nil {
		return err
	}
	c.say(id, "its directory was deleted")
	return c.start(ctx, id)
}

func (c *cluster) data(id raft.ServerID) string { return filepath.Join(c.dir, string(id)) }

// start starts a server in an empty directory. It returns when the server has been taken in.
func (c *cluster) start(ctx context.Context, id raft.ServerID) error {
	own, err := certify(id, c.ca)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(own.key)
	if err != nil {
		return err
	}
	s := setup{ID: id, Dir: c.data(id), CA: c.ca.cert.Raw, Cert: own.cert.Raw, Key: key, Join: c.now().others(id)}
	if live := c.live(); len(live) > 0 && !c.now().member(id) { // a member needs its certificate alone
		if err := live[0].call(ctx, "JoinToken", id, &s.JoinToken); err != nil {
			return err
		}
	}
	p, err := spawn(s)
	if err != nil {
		return err
	}
	c.say(id, "is process %d, with an empty directory", p.cmd.Process.Pid)
	started := make(chan struct{})
	go c.follow(p, started)
	select {
	case <-started:
		c.mu.Lock()
		c.processes[id] = p
		c.mu.Unlock()
		c.say(id, "has started")
		return nil
	case <-p.gone:
		return fmt.Errorf("%s did not start: %w", id, p.err)
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), p.end())
	}
}

// spawn runs this program as a server.
func spawn(s setup) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	json.NewEncoder(in).Encode(s) // if this fails, so does the first call
	return &process{id: s.ID, cmd: cmd, rpc: jsonrpc.NewClient(pipes{out, in}), gone: make(chan struct{})}, nil
}

// follow takes what a server sees, until the server is gone. Its first answer says that it
// has started.
func (c *cluster) follow(p *process, started chan<- struct{}) {
	for first := true; ; first = false {
		var s keyring.Status
		if err := p.call(context.Background(), "Status", struct{}{}, &s); err != nil {
			break
		}
		if c.see(s); first {
			close(started)
		}
	}
	p.rpc.Close()
	p.err = p.cmd.Wait()
	c.forget(p.id)
	close(p.gone)
}

// live returns the servers that can be asked.
func (c *cluster) live() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Values(c.processes), func(a, b *process) int { return cmp.Compare(a.id, b.id) })
}

// other returns a server that is not that one.
func (c *cluster) other(id raft.ServerID) *process {
	live := c.live()
	return live[slices.IndexFunc(live, func(p *process) bool { return p.id != id })]
}

// end ends all servers and waits for them.
func (c *cluster) end() error {
	var errs []error
	for _, p := range c.live() {
		errs = append(errs, p.end())
	}
	return errors.Join(errs...)
}

// end has a server close its node and end, and kills it if that takes too long.
func (p *process) end() error {
	p.rpc.Close()
	defer time.AfterFunc(callTime, func() { p.cmd.Process.Kill() }).Stop()
	if <-p.gone; p.err != nil {
		return fmt.Errorf("%s ended: %w", p.id, p.err)
	}
	return nil
}

// call calls a method of Server.
func (p *process) call(ctx context.Context, method string, in, out any) error {
	call := p.rpc.Go("Server."+method, in, out, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		if call.Error != nil {
			return fmt.Errorf("%s: %s: %w", p.id, method, call.Error)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// identity is a certificate and its key.
type identity struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes an identity and has an authority sign it; without one, it signs itself.
func issue(template *x509.Certificate, by *identity) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.NotBefore, template.NotAfter = time.Now(), time.Now().Add(time.Hour)
	if by == nil {
		by = &identity{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &identity{cert, key}, err
}

func newAuthority() (*identity, error) {
	return issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "failover CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil)
}

// certify makes the identity of a server. All that the others look at is the URI: it names
// the cluster, the role and the ID. It serves both ends of a connection.
func certify(id raft.ServerID, ca *identity) (*identity, error) {
	return issue(&x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "keyring", Host: clusterName, Path: "/server/" + string(id)}},
	}, ca)
}
