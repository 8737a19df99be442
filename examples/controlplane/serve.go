package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"example.com/keyring"
	"example.com/keyring/admin"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// cluster is cluster.json: what all servers have to agree on.
type cluster struct {
	Name    string                        `json:"name"`   // in the certificates
	Issuer  string                        `json:"issuer"` // of the tokens; serves the well-known documents
	Servers map[raft.ServerID]serverAddrs `json:"servers"`

	AcceptIssuers []string `json:"acceptIssuers,omitempty"` // of tokens that verify too, while the issuer is changed
}

// tokens are its tokens, by what all servers agree on.
func (c cluster) tokens() keyring.TokenPolicy {
	return keyring.TokenPolicy{Issuer: c.Issuer, AcceptIssuers: c.AcceptIssuers, Algorithm: "ES256", MaxTTL: maxTTL}
}

// issuerAt is the issuer that a relying party means which looks below that host and port.
func (c cluster) issuerAt(host string) string {
	for _, issuer := range c.AcceptIssuers {
		if u, err := url.Parse(issuer); err == nil && u.Host == host {
			return issuer
		}
	}
	return c.Issuer
}

type serverAddrs struct {
	Raft string `json:"raft"` // of the node: raft and the keyring, mutual TLS
	HTTP string `json:"http"` // of the API and the page, on loopback
}

func readCluster(dir string) (c cluster, err error) {
	b, err := readFile(filepath.Join(dir, "cluster.json"))
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("cluster.json: %w", err)
	}
	return c, nil
}

// server is one server of the control plane.
type server struct {
	id      raft.ServerID
	dir     string // of init
	cluster cluster
	store   store
	clicks  bool          // the page may rotate keys
	every   time.Duration // between rotations; zero is the default
	log     hclog.Logger
	started chan struct{} // closed when the rest is set
	node    *node.Node
	admin   *admin.Handler
}

// options are the flags of serve.
type options struct {
	every    time.Duration // between rotations
	rate     int           // of secrets that are re-encrypted, a second; zero is as fast as raft
	clicks   bool
	escrow   string // age recipients, comma-separated
	identity string // a file, the way back with them
	token    string // a file with a join token
	backups  string // a directory for backups by schedule
	to       string // age recipients of these, comma-separated
	log      hclog.Logger
	stdout   io.Writer
}

// newServer reads what init has put into dir for a server. Without a log in the options it logs nothing.
func newServer(dir string, id raft.ServerID, o options) (*server, node.Config, error) {
	c, err := readCluster(dir)
	if err != nil {
		return nil, node.Config{}, err
	}
	if _, known := c.Servers[id]; !known {
		return nil, node.Config{}, usage{fmt.Errorf("cluster.json has no server %q", id)}
	}
	keks, old, err := o.keks(dir, id)
	if err != nil {
		return nil, node.Config{}, err
	}
	if o.log == nil {
		o.log = hclog.NewNullLogger()
	}
	keys := keyring.NewFSM()
	s := &server{
		id: id, dir: dir, cluster: c, store: newStore(keys), clicks: o.clicks, every: o.every, log: o.log, started: make(chan struct{}),
	}
	conf := s.config(dir, keys, o)
	if o.token != "" {
		b, err := readFile(o.token)
		if err != nil {
			return nil, node.Config{}, fmt.Errorf("join token: %w", err)
		}
		if conf.JoinToken = strings.TrimSpace(string(b)); conf.JoinToken == "" {
			return nil, node.Config{}, fmt.Errorf("join token: %s is empty", o.token)
		}
	}
	conf.KEKs, conf.OldKEKs = keks, old
	if conf.Backups, err = o.schedule(); err != nil {
		return nil, node.Config{}, err
	}
	return s, conf, nil
}

// serveCommand is the command serve.
func serveCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	every := fs.Duration("every", 0, "how often keys rotate: a `time` such as 720h") // zero is the keyring's own default
	rate := fs.Int("rate", 0, "how many `secrets` a full rotation may re-encrypt in a second; 0 is no limit")
	clicks := fs.Bool("clicks", false, "the page has buttons that rotate and remove keys")
	escrow := fs.String("escrow", "", "wrap each key also to these age `recipients`, comma-separated")
	identity := fs.String("identity", "", "a `file` with an identity of the escrow, if DIR/ID.kek was lost")
	token := fs.String("token", "", "a `file` with a join token") // a file: a command line can be read by others
	backups := fs.String("backups", "", "a `directory` for a backup a day, which all servers share")
	to := fs.String("to", "", "age `recipients` of these backups, comma-separated")
	args, err := flags(fs, args, 2)
	if err != nil {
		return err
	}
	if (*backups == "") != (*to == "") {
		return usage{errors.New("serve: -backups and -to must be given together")}
	}
	if *identity != "" && *escrow == "" {
		return usage{errors.New("serve: -identity is for -escrow")}
	}
	log := hclog.New(&hclog.LoggerOptions{Name: args[1], Output: stderr, Level: hclog.Info})
	return serve(ctx, args[0], raft.ServerID(args[1]), options{*every, *rate, *clicks, *escrow, *identity, *token, *backups, *to, log, stdout})
}

// serve runs a server until ctx ends.
func serve(ctx context.Context, dir string, id raft.ServerID, o options) (err error) {
	s, conf, err := newServer(dir, id, o)
	if err != nil {
		return err
	}
	// The node ends last. It waits for what requests have it do, and a backup to a client that does not
	// read ends only with its connection.
	defer func() {
		if s.node != nil {
			err = errors.Join(err, s.node.Close())
		}
	}()
	own := s.cluster.Servers[id]
	// The API is there first, and says 503 until the node has started: the others may ask.
	ln, err := listenLoopback(own.HTTP)
	if err != nil {
		return err
	}
	fmt.Fprintf(o.stdout, "%s http://%s\n", id, own.HTTP)
	api := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- api.Serve(ln) }()
	defer func() {
		err = errors.Join(err, api.Close())
		if e := <-served; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}()
	n, err := node.Start(ctx, conf)
	if err == nil {
		err = s.begin(n)
	}
	if err != nil {
		return err
	}
	if len(conf.OldKEKs) > 0 {
		s.moveOffOldKEKs(ctx)
	}
	select {
	case <-ctx.Done():
	case e := <-served:
		served <- e // it is returned when all is closed
	}
	return nil
}

// audit logs a step in the life of a key. Every server does, as soon as it has applied it.
func (s *server) audit(e keyring.Event) {
	s.log.Info("audit", "step", e.Step, "key", e.Key, "by", cmp.Or(e.Actor, "keyring"), "index", e.Index, "time", e.Time)
}

// moveOffOldKEKs has the key files wrapped under the present KEKs alone, so that the next start needs no
// old ones. What is left is in the status.
func (s *server) moveOffOldKEKs(ctx context.Context) {
	err := s.node.Keyring().WaitReady(ctx)
	if err == nil {
		err = s.node.Keyring().Rewrap(ctx)
	}
	if err != nil {
		s.log.Error("could not rewrap the key files", "error", err)
	}
}

// config is what the keyring needs to know of the program.
func (s *server) config(dir string, keys *keyring.FSM, o options) node.Config {
	conf := node.Config{
		ID:        s.id,
		Dir:       filepath.Join(dir, string(s.id)),
		Addr:      s.cluster.Servers[s.id].Raft,
		Cluster:   s.cluster.Name,
		TLS:       tlsOf(dir, s.id),
		Peers:     map[raft.ServerID]string{},
		App:       s.store,
		Keys:      keys, // the one that the store asks
		Data:      s.store,
		Rotation:  keyring.RotationPolicy{Every: o.every},
		RekeyRate: o.rate,
		Tokens:    s.cluster.tokens(),
		Audit:     s.audit,
		Logger:    o.log,
	}
	for id, a := range s.cluster.Servers {
		conf.Peers[id] = a.Raft
	}
	return conf
}

// listenLoopback listens where nobody but this machine's users can reach it: the API knows no
// passwords.
func listenLoopback(addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("the API is for loopback addresses only, not for %s", addr)
	}
	return net.Listen("tcp", addr)
}

// tlsOf reads a server's certificate, with its key in the same file, and the CA's, when they have changed.
func tlsOf(dir string, id raft.ServerID) func() (*tls.Config, error) {
	own := filepath.Join(dir, string(id)+".pem")
	return keyring.TLSFiles(own, own, filepath.Join(dir, "ca.pem"))
}

// apply proposes a command to the store, on the leader.
func (s *server) apply(ctx context.Context, c command) (any, error) {
	entry, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return s.node.Apply(ctx, entry)
}
