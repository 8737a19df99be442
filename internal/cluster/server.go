package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// Config is what Start needs.
type Config struct {
	ID  raft.ServerID
	Dir string // in which raft keeps its log and snapshots
	// FSM is what raft applies its log to. Section checks the start of a snapshot for it, and returns a reader of all
	// of the snapshot.
	FSM     raft.FSM
	Section func(io.Reader) (io.Reader, error)
	Limits  LogLimits
	// DiskChanged is called when raft's writes begin to fail or hang, and when they succeed or return again: see Server.DiskFaults.
	DiskChanged func()
	Logger      hclog.Logger
	// WrapLog and WrapStable, if they are set, return what raft uses in place of its log, and of the store of its term and vote.
	WrapLog    func(raft.LogStore) raft.LogStore
	WrapStable func(raft.StableStore) raft.StableStore
	// Pace, if it is set, is in place of raft's timeouts, where it has an address: a test's servers may share a slow machine.
	Pace time.Duration

	// Addr is the host:port at which the other servers reach this one. Empty means that there are no others, and no
	// port: then nothing below counts.
	Addr      string
	Listen    string       // the host:port to listen at
	Listener  net.Listener // in place of Listen; nil means none
	Cluster   string       // the cluster's name in the certificates
	TLS       func() (*tls.Config, error)
	Peers     map[raft.ServerID]string // the addresses of the initial servers
	Join      []port.Candidate         // servers of a cluster to join
	JoinToken string
	Errors    port.ErrorCodes // that keep their identity in the leader's answers
}

// Server is one server of a cluster, or one alone: its raft, raft's log and snapshots on disk, and its port.
type Server struct {
	cfg  Config
	dir  *Dir
	disk *Disk
	raft *raft.Raft
	port *port.Port // nil for a server alone

	end   context.CancelFunc // of the loop that keeps raft's log short
	loops sync.WaitGroup

	fresh atomic.Bool // this server has found no raft log, and has not bootstrapped a cluster yet

	mu    sync.Mutex                 // guards below
	named map[raft.ServerID][]string // the initial servers that another one of them has named, while this server is fresh
}

// Start opens the port and raft's directory and starts raft. A server that has nothing there first learns from the
// others whether there is a cluster already: it must not come back as the voter that it may have been. ctx bounds how
// long it asks. The other servers' calls are answered after Serve. It refuses a directory that is another server's.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, named: map[raft.ServerID][]string{}}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// start does what Close undoes, whatever part of it was done.
func (s *Server) start(ctx context.Context) (err error) {
	if s.cfg.Addr != "" {
		if err := s.listen(); err != nil {
			return err
		}
		if err := s.mayFindCluster(); err != nil {
			return err
		}
	}
	if s.dir, err = OpenDir(s.cfg.Dir, s.cfg.Logger); err != nil {
		return err
	}
	if err := s.dir.own(s.cfg.ID, s.cfg.Cluster); err != nil {
		return err
	}
	trans := s.transport()
	if err := s.enterCluster(ctx, trans); err != nil {
		return err
	}
	s.fresh.Store(false)
	if err := s.openDisk(); err != nil {
		return err
	}
	conf := s.cfg.raft()
	if s.port != nil {
		if err := s.port.HoldElections(conf); err != nil {
			return err
		}
	}
	if s.raft, err = raft.NewRaft(conf, s.cfg.FSM, s.disk, s.disk, s.disk, trans); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	ctx, end := context.WithCancel(context.Background())
	s.end = end
	s.disk.Attach(s.raft)
	s.loops.Go(func() { s.disk.KeepLogShort(ctx, s.cfg.Logger) })
	if s.port != nil {
		return s.port.Attach(s.raft, s.disk.Parked)
	}
	return nil
}

// mayFindCluster refuses to look for the cluster with what no other server would accept, and to create a log if it can't be
// told which cluster that is of. A server that has a log starts all the same, for its keys open what they have sealed, and
// certificates are read again: it is told in the log alone.
func (s *Server) mayFindCluster() error {
	there, err := HasRaft(s.cfg.Dir)
	if err != nil {
		return err
	}
	conf, err := peer.Load(s.cfg.TLS)
	if err == nil {
		err = peer.CheckOwnNow(conf)
	}
	if !there {
		return errors.Join(err, s.cfg.provable())
	}
	if err != nil {
		s.cfg.Logger.Error("the other servers will refuse this one until its certificate or the CAs are replaced", "error", err)
	}
	return nil
}

// openDisk puts s.disk between raft and its directory. It writes raft's term as it is: raft does that when it starts, and
// a disk that fails is an error of Start.
func (s *Server) openDisk() error {
	var log raft.LogStore = s.dir.Log
	var stable raft.StableStore = s.dir.Log
	if s.cfg.WrapLog != nil {
		log = s.cfg.WrapLog(log)
	}
	if s.cfg.WrapStable != nil {
		stable = s.cfg.WrapStable(stable)
	}
	term, err := stable.GetUint64(currentTerm)
	if err == nil {
		err = stable.SetUint64(currentTerm, term)
	}
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return fmt.Errorf("write raft's term in %s: %w", s.cfg.Dir, err)
	}
	s.disk = NewDisk(log, stable, s.dir.Snaps, s.cfg.DiskChanged)
	if err := s.disk.Measure(s.cfg.Limits); err != nil {
		return fmt.Errorf("read raft's log in %s: %w", s.cfg.Dir, err)
	}
	return nil
}

func (s *Server) listen() error {
	p, err := port.Listen(port.Config{
		ID: s.cfg.ID, Cluster: s.cfg.Cluster, Addr: s.cfg.Addr, Listen: s.cfg.Listen, Listener: s.cfg.Listener,
		TLS: s.cfg.TLS, Peers: s.cfg.Peers, Errors: s.cfg.Errors, Logger: s.cfg.Logger, Fresh: s.freshAnswer,
	})
	if err != nil {
		return err
	}
	s.port = p
	return nil
}

// transport returns what raft talks to the other servers with.
func (s *Server) transport() raft.Transport {
	if s.port == nil {
		_, trans := raft.NewInmemTransport(s.cfg.address())
		return trans
	}
	return s.port.RaftTransport(s.dir.Log, s.cfg.Section)
}

// enterCluster bootstraps the cluster or joins it, if raft knows of none.
func (s *Server) enterCluster(ctx context.Context, trans raft.Transport) error {
	known, err := s.dir.Known()
	if err != nil || known {
		return err
	}
	if err := s.dir.CheckRestored(); err != nil {
		return err
	}
	initial := s.cfg.Alone()
	if s.port != nil {
		others, err := s.toBootstrap(ctx)
		if err == nil && len(others) > 0 {
			err = s.port.Join(ctx, others, s.cfg.JoinToken)
		}
		if err != nil || len(others) > 0 {
			return err
		}
		initial = s.cfg.initialServers()
	}
	if err := port.ForgetIntroduction(s.dir.Log); err != nil {
		return err
	}
	if err := s.dir.Bootstrap(s.cfg.raft(), trans, initial); err != nil {
		return fmt.Errorf("bootstrap the cluster: %w", err)
	}
	return nil
}

// Serve answers the other servers from now on: their calls by path, and what they ask to join. It is called once,
// when the keyring runs.
func (s *Server) Serve(h port.Host, calls map[string]port.Handler) {
	if s.port == nil {
		return
	}
	_ = s.port.Start(h, calls) // which fails after Close alone
}

// Close shuts raft down, and closes its port and its directory. The FSM has to apply what it is given until then.
func (s *Server) Close() error {
	var errs []error
	if s.raft != nil {
		s.end()
		ended := s.raft.Shutdown()
		s.disk.End()
		errs = append(errs, ended.Error())
		s.loops.Wait()
	}
	if s.port != nil {
		errs = append(errs, s.port.Close())
	}
	if s.dir != nil {
		errs = append(errs, s.dir.Close())
	}
	return errors.Join(errs...)
}

// Raft returns the server's raft.
func (s *Server) Raft() *raft.Raft { return s.raft }

// Port returns the server's port, or nil if it is alone.
func (s *Server) Port() *port.Port { return s.port }

// DiskFaults says what of raft's can't be written now, and since when.
func (s *Server) DiskFaults() []DiskFault { return s.disk.Faults() }

// Leader returns the ID of the leader, or nothing if none is known.
func (s *Server) Leader() raft.ServerID {
	_, leader := s.raft.LeaderWithID()
	return leader
}

// Members returns the servers of raft's latest configuration, in its order.
func (s *Server) Members() []raft.Server { return s.raft.GetConfiguration().Configuration().Servers }

// Member returns a server of raft's latest configuration.
func (s *Server) Member(id raft.ServerID) (raft.Server, bool) {
	return port.Find(s.Members(), id)
}

// address is what raft calls this server. One that is alone has no address, and its ID will do.
func (c Config) address() raft.ServerAddress {
	return cmp.Or(raft.ServerAddress(c.Addr), raft.ServerAddress(c.ID))
}

// Alone is the configuration of a cluster that has this server as its only member.
func (c Config) Alone() raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{ID: c.ID, Address: c.address()}}}
}

// singleServerTimeout is a timeout of raft's for a server alone.
const singleServerTimeout = 20 * time.Millisecond

func (c Config) raft() *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = c.ID
	conf.Logger = c.Logger.Named("raft")
	limits := c.Limits.filled()
	conf.SnapshotThreshold, conf.TrailingLogs = limits.Entries, limits.most()
	conf.ShutdownOnRemove = false // Close alone shuts it down
	if c.Addr == "" {             // it need not wait for another server's vote
		conf.HeartbeatTimeout, conf.ElectionTimeout = singleServerTimeout, singleServerTimeout
		conf.LeaderLeaseTimeout, conf.CommitTimeout = singleServerTimeout, singleServerTimeout
	} else if c.Pace > 0 {
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = c.Pace, c.Pace, c.Pace
	}
	return conf
}
