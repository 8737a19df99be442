package keyringtest

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/simulated"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Options say what a Cluster is made of. The zero value is one server.
type Options struct {
	Servers int
	// Pace is raft's heartbeat and election timeout, and all its other times in
	// proportion. Zero is one second. With an hour, a year costs seconds.
	Pace time.Duration
	// Configure changes a server's Config before Open, if not nil. The keys are on Server.Disk.
	Configure func(*Server, *keyring.Config)
	// Disk gives a server its first disk. Nil is an empty one for each.
	Disk func(raft.ServerID) *Disk
	// Raft changes raft's configuration, if not nil.
	Raft func(*raft.Config)
	// App makes the host's FSM of a server, for one that rides the same raft. Nil is none.
	App func(*Server) raft.FSM
	// FSM makes a server's FSM. Nil is keyring.NewFSM.
	FSM func(*Server) *keyring.FSM
	// Log gets what raft and the keyrings log, if not nil.
	Log hclog.Logger
}

// Cluster is servers with a real raft and a real keyring each, in one process: raft over
// in-memory transports, keys on simulated disks, wall clocks that can be set, peer requests by function calls. It is made
// for testing/synctest, where all of its timeouts cost nothing. Call its methods from the
// test's goroutine only.
type Cluster struct {
	TB      testing.TB
	Servers []*Server

	opt   Options
	mu    sync.Mutex // guards below
	cut   map[[2]raft.ServerID]bool
	hook  func(Event) Reply
	peers map[raft.ServerID]*Server // Servers, for other goroutines
}

// Server is one server of a Cluster.
type Server struct {
	ID      raft.ServerID
	Disk    *Disk // of the keystore
	Clock   Clock // the wall clock, of a keyring that is given it
	Raft    *raft.Raft
	FSM     *keyring.FSM
	App     raft.FSM
	Keyring *keyring.Keyring

	cluster *Cluster
	trans   *raft.InmemTransport
	log     *eventStore
	snaps   raft.SnapshotStore
	life    chan struct{} // closed by Stop; made by Start
	mu      sync.Mutex    // guards below
	dead    bool
	serving *keyring.Keyring // Keyring, for other goroutines
}

// collectLess has the garbage collector run less often: clusters in virtual time make much garbage and keep little.
var collectLess = sync.OnceFunc(func() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
})

// NewCluster starts the servers, bootstrapped together as voters.
func NewCluster(tb testing.TB, opt Options) *Cluster {
	if _, isTest := tb.(*testing.T); isTest { // a benchmark has the collector that a host has
		collectLess()
	}
	c := &Cluster{TB: tb, opt: opt, cut: map[[2]raft.ServerID]bool{}, peers: map[raft.ServerID]*Server{}}
	if c.opt.Pace == 0 {
		c.opt.Pace = time.Second
	}
	if c.opt.Log == nil {
		c.opt.Log = hclog.NewNullLogger()
	}
	var conf raft.Configuration
	for i := range max(1, opt.Servers) {
		s := c.newServer(raft.ServerID(fmt.Sprintf("s%d", i+1)))
		conf.Servers = append(conf.Servers, raft.Server{ID: s.ID, Address: raft.ServerAddress(s.ID)})
	}
	for _, s := range c.Servers {
		err := raft.BootstrapCluster(c.raftConfig(s.ID), s.log.InmemStore, s.log, s.snaps, s.trans, conf)
		if err != nil {
			tb.Fatal(err)
		}
		c.Start(s)
	}
	tb.Cleanup(c.Close)
	return c
}

// newServer makes a server with empty disks.
func (c *Cluster) newServer(id raft.ServerID) *Server {
	s := &Server{ID: id, cluster: c, dead: true}
	c.wipe(s)
	if c.opt.Disk != nil {
		s.Disk = c.opt.Disk(id)
	}
	c.Servers = append(c.Servers, s)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peers[id] = s
	return s
}

func (c *Cluster) wipe(s *Server) {
	s.Disk = NewDisk()
	s.log = &eventStore{InmemStore: raft.NewInmemStore(), server: s}
	s.snaps = raft.NewInmemSnapshotStore()
	_, s.trans = raft.NewInmemTransportWithTimeout(raft.ServerAddress(s.ID), c.opt.Pace/2)
}

func (c *Cluster) raftConfig(id raft.ServerID) *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = id
	conf.HeartbeatTimeout, conf.ElectionTimeout = c.opt.Pace, c.opt.Pace
	conf.LeaderLeaseTimeout = c.opt.Pace / 2
	conf.CommitTimeout = c.opt.Pace / 20
	conf.Logger = c.opt.Log.Named(string(id))
	if c.opt.Raft != nil {
		c.opt.Raft(conf)
	}
	return conf
}

// Start starts a server on what its disks hold.
func (c *Cluster) Start(s *Server) {
	c.TB.Helper()
	if s.Disk.isCrashed() { // Stop came in the middle of an operation
		s.Disk = s.Disk.Crash(Dropped, 0)
	}
	s.Disk.OnOp(func(op Op) Fault {
		return Fault{Err: c.event(Event{Server: s, Kind: "disk", What: op.Kind + " " + op.Name}).Err}
	})
	s.setDead(false)
	s.life = make(chan struct{})
	s.log = &eventStore{InmemStore: s.log.InmemStore, server: s, life: s.life}
	c.connect()
	s.FSM, s.App = keyring.NewFSM(), nil
	if c.opt.FSM != nil {
		s.FSM = c.opt.FSM(s)
	}
	fsm := raft.FSM(s.FSM)
	if c.opt.App != nil {
		s.App = c.opt.App(s)
		fsm = keyring.Mux(s.FSM, s.App)
	}
	var err error
	if s.Raft, err = raft.NewRaft(c.raftConfig(s.ID), fsm, s.log, s.log, s.snaps, s.trans); err != nil {
		c.TB.Fatal(err)
	}
	cfg := keyring.Config{
		ID: s.ID, Dir: "simulated", Raft: s.Raft, FSM: s.FSM, Transport: link{c, s},
		MetricsEvery: -1, // months pass in some tests
		KEKs:         []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
		Logger: c.opt.Log.Named(string(s.ID) + " keyring"),
	}
	if c.opt.Configure != nil {
		c.opt.Configure(s, &cfg)
	}
	if s.Keyring, err = keyring.Open(c.simulate(s), cfg); err != nil {
		c.TB.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = s.Keyring
}

// simulate has Open use the server's disk and its clock.
func (c *Cluster) simulate(s *Server) context.Context {
	c.TB.Helper()
	fsys, err := s.Disk.Open()
	if err != nil {
		c.TB.Fatal(err)
	}
	return simulated.WithClock(simulated.WithDisk(context.Background(), fsys), s.Clock.Now)
}

// Kill makes a server stop having effects, at once: nothing it does from now on reaches a
// disk or another server. It may be called from an event. Stop ends its goroutines.
func (c *Cluster) Kill(s *Server) {
	s.setDead(true)
	c.connect()
}

// Stop kills a server if it is not dead and ends its goroutines.
func (c *Cluster) Stop(s *Server) {
	c.Kill(s)
	if s.Raft == nil {
		return
	}
	close(s.life)
	_ = s.Keyring.Close() // its disk is dead; before raft, which may leave a proposal unanswered
	if err := s.Raft.Shutdown().Error(); err != nil {
		c.TB.Error(err)
	}
	s.Raft = nil
}

// Restart stops a server, loses what its keystore had not synced, and starts it again.
func (c *Cluster) Restart(s *Server) {
	c.Stop(s)
	s.Disk = s.Disk.Crash(Dropped, 0)
	_, s.trans = raft.NewInmemTransportWithTimeout(raft.ServerAddress(s.ID), c.opt.Pace/2)
	c.Start(s)
}

// Wipe stops a server and starts it with empty disks. It is in nobody's configuration
// until it is joined again.
func (c *Cluster) Wipe(s *Server) {
	c.Stop(s)
	c.wipe(s)
	c.Start(s)
}

// Remove takes a server that is stopped or wiped out of the configuration.
func (c *Cluster) Remove(s *Server) {
	c.TB.Helper()
	if err := c.Leader().Raft.RemoveServer(s.ID, 0, 0).Error(); err != nil {
		c.TB.Fatal(err)
	}
}

// Join makes a server a voter.
func (c *Cluster) Join(s *Server) {
	c.TB.Helper()
	if err := c.Leader().Raft.AddVoter(s.ID, raft.ServerAddress(s.ID), 0, 0).Error(); err != nil {
		c.TB.Fatal(err)
	}
}

// Add starts a fresh server and makes it a voter.
func (c *Cluster) Add(id raft.ServerID) *Server {
	s := c.StartFresh(id)
	c.Join(s)
	return s
}

// StartFresh starts a server with empty disks, which is in nobody's configuration.
func (c *Cluster) StartFresh(id raft.ServerID) *Server {
	s := c.newServer(id)
	c.Start(s)
	return s
}

// Close stops every server.
func (c *Cluster) Close() {
	for _, s := range c.Servers {
		c.Stop(s)
	}
}

// Partition cuts every link between the servers named and all others, both ways. Without
// names it heals all.
func (c *Cluster) Partition(alone ...*Server) {
	c.mu.Lock()
	clear(c.cut)
	for _, a := range c.Servers {
		for _, b := range c.Servers {
			if slices.Contains(alone, a) != slices.Contains(alone, b) {
				c.cut[[2]raft.ServerID{a.ID, b.ID}] = true
			}
		}
	}
	c.mu.Unlock()
	c.connect()
}

func (c *Cluster) isCut(a, b raft.ServerID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut[[2]raft.ServerID{a, b}]
}

// connect makes raft's links those between live servers that are not cut.
func (c *Cluster) connect() {
	for _, a := range c.Servers {
		for _, b := range c.Servers {
			addr := raft.ServerAddress(b.ID)
			if a == b || a.isDead() || b.isDead() || c.isCut(a.ID, b.ID) {
				a.trans.Disconnect(addr)
			} else {
				a.trans.Connect(addr, b.trans)
			}
		}
	}
}

// Leader waits for a leader that a majority follows. It may have yet to apply its barrier.
func (c *Cluster) Leader() *Server {
	c.TB.Helper()
	for range 1000 {
		for _, s := range c.Servers {
			if s.Raft != nil && !s.isDead() && s.Raft.State() == raft.Leader && s.Raft.VerifyLeader().Error() == nil {
				return s
			}
		}
		time.Sleep(c.opt.Pace / 4)
	}
	c.TB.Fatal("no leader")
	return nil
}

// Live returns the servers that are not dead.
func (c *Cluster) Live() []*Server {
	return slices.DeleteFunc(slices.Clone(c.Servers), func(s *Server) bool { return s.isDead() || s.Raft == nil })
}

// Server returns the server of that ID.
func (c *Cluster) Server(id raft.ServerID) *Server {
	for _, s := range c.Servers {
		if s.ID == id {
			return s
		}
	}
	return nil
}

func (s *Server) isDead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

func (s *Server) setDead(dead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = dead
}

// peer returns a server and, if it is not dead, its keyring.
func (c *Cluster) peer(id raft.ServerID) (*Server, *keyring.Keyring) {
	c.mu.Lock()
	s := c.peers[id]
	c.mu.Unlock()
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return s, nil
	}
	return s, s.serving
}
