package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/raft"
)

// initialServers is the configuration that Peers names.
func (c Config) initialServers() (conf raft.Configuration) {
	for _, id := range slices.Sorted(maps.Keys(c.Peers)) {
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: raft.ServerAddress(c.Peers[id])})
	}
	return conf
}

// candidates are the other servers that the configuration names.
func (c Config) candidates() []port.Candidate {
	var all []port.Candidate
	for id, addr := range c.Peers {
		if id != c.ID {
			all = append(all, port.Candidate{ID: string(id), Addr: addr})
		}
	}
	return append(all, c.Join...)
}

var errNoCluster = errors.New("node configuration: Peers and Join are empty, and there is no raft log or snapshot: no cluster to bootstrap or join")

// provable says why a server without a raft log has no cluster to look for, or could not tell it from any server that has a
// certificate of its CA. A server that has a raft log needs no token: one that stayed in its configuration is no reason to stop.
func (c Config) provable() error {
	if len(c.Peers)+len(c.Join) == 0 {
		return errNoCluster
	}
	if err := port.Provable(c.candidates(), c.JoinToken); err != nil {
		return fmt.Errorf("node configuration: %w", err)
	}
	return nil
}

// bootstrapHello is the body of a hello from a server that is to bootstrap a cluster. A build that does not know it does not
// look at it.
type bootstrapHello struct {
	InitialServers []string `json:"founders" bound:"elements=1024,bytes=2048"`
}

var bootstrapHelloType = bounded.For[bootstrapHello](peer.MaxMessage)

// toBootstrap asks the other servers until it knows whether the cluster is to be bootstrapped, or exists and is to be
// joined: then it returns the servers that may know its leader.
//
// All initial servers have to answer before the cluster is bootstrapped: one that does not answer may belong to a
// cluster that works. And all have to name the same initial servers: each writes them into its own log, and two that
// differ there would both report success. It waits until they do: an operator who corrects Peers on one server need
// not start the others again.
func (s *Server) toBootstrap(ctx context.Context) (join []port.Candidate, err error) {
	s.fresh.Store(true)
	if err := s.cfg.provable(); err != nil {
		return nil, err
	}
	others, logged, at := s.cfg.candidates(), "", mono.Time(0)
	for wait := port.NewWaiting(s.cfg.Logger); ; {
		found, err := s.survey(ctx, others, wait)
		switch {
		case err != nil:
			return nil, err
		case found.bootstrapped:
			return others, nil
		case found.silent == 0 && found.differs == nil && len(s.cfg.Peers) > 0:
			return nil, nil
		}
		if found.differs != nil && (found.differs.Error() != logged || mono.Now().Sub(at) >= time.Minute) {
			logged, at = found.differs.Error(), mono.Now()
			s.cfg.Logger.Error("the cluster is not bootstrapped yet", "error", found.differs)
		}
		wait.Say("waiting for the other servers")
		if !wait.Again(ctx) {
			err := fmt.Errorf("bootstrap or join a cluster: %w", context.Cause(ctx))
			if why := wait.Err(); why != nil {
				err = fmt.Errorf("%w: waiting for the other servers: %w", err, why)
			}
			return nil, errors.Join(err, found.differs)
		}
	}
}

// surveyed is what the other servers have answered.
type surveyed struct {
	silent       int   // how many did not answer
	bootstrapped bool  // one belongs to a cluster that works
	differs      error // what initial servers they name, if not the same as this server
}

var errNoClusterThere = errors.New("it answers, but belongs to no cluster yet")

// survey asks each server what it is.
func (s *Server) survey(ctx context.Context, others []port.Candidate, wait *port.Waiting) (found surveyed, err error) {
	byName := map[string]port.Candidate{}
	for _, c := range others {
		byName[c.String()] = c
	}
	names := slices.Sorted(maps.Keys(byName))
	here := port.Texts(s.cfg.initialServers().Servers)
	body, err := json.Marshal(bootstrapHello{here})
	if err != nil {
		return surveyed{}, err
	}
	type answer struct {
		port.HelloAnswer
		err error
	}
	answers := peer.All(ctx, names, func(ctx context.Context, name string) (answer, error) {
		a, err := s.port.Hello(ctx, byName[name], body)
		return answer{a, err}, nil
	}, nil)
	var errs []error
	heard := map[string]bool{}
	for _, name := range names {
		a := answers[name]
		if a.err != nil {
			wait.Failed(ctx, name, a.err)
			found.silent++
			continue
		}
		wait.Helped(name)
		if _, initial := s.cfg.Peers[raft.ServerID(byName[name].ID)]; !initial && !a.Bootstrapped {
			wait.Failed(ctx, name, errNoClusterThere)
		}
		found.bootstrapped = found.bootstrapped || a.Bootstrapped
		heard[byName[name].ID] = len(a.InitialServers) > 0
		errs = append(errs, differ(here, name, a.HelloAnswer))
	}
	found.differs = errors.Join(append(errs, s.namedOtherwise(here, heard)...)...)
	return found, nil
}

// namedOtherwise are the errors of the servers that have named other initial servers when they asked this one. What a server
// was heard to answer is newer.
func (s *Server) namedOtherwise(here []string, heard map[string]bool) (errs []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.named)) {
		if !heard[string(id)] {
			errs = append(errs, differ(here, string(id), port.HelloAnswer{InitialServers: s.named[id]}))
		}
	}
	return errs
}

// differ is an error if both lists are known and are not the same.
func differ(here []string, name string, a port.HelloAnswer) error {
	if len(here) == 0 || len(a.InitialServers) == 0 || slices.Equal(here, a.InitialServers) {
		return nil
	}
	err := fmt.Errorf("bootstrap the cluster: Peers must be the same on each server, and are %q here and %q on %s", here, a.InitialServers, name)
	if a.Logged {
		return fmt.Errorf("%w, in its raft log, whatever its Peers are now: if no server has committed anything, stop it, delete the directory raft in its Dir, and start it again", err)
	}
	return err
}

// freshAnswer tells another server by which servers the cluster is to be bootstrapped, if this one knows of none yet.
func (s *Server) freshAnswer(from raft.ServerID, body []byte) (initial []string, fresh bool) {
	s.noteInitialServers(from, body)
	return port.Texts(s.cfg.initialServers().Servers), s.fresh.Load()
}

// noteInitialServers records which initial servers another one of them names, which asks because it is to bootstrap the
// cluster too. It may have given up by the time it is asked itself.
func (s *Server) noteInitialServers(from raft.ServerID, body []byte) {
	if _, initial := s.cfg.Peers[from]; !initial || len(body) == 0 || !s.fresh.Load() {
		return
	}
	h, err := bootstrapHelloType.Decode(body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.named[from] = h.InitialServers
}
