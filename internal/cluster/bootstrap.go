package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// joinRetry is how long a server waits before it asks again those that did not answer.
const joinRetry = 250 * time.Millisecond

// initialServers is the configuration that Peers names.
func (c Config) initialServers() (conf raft.Configuration) {
	for _, id := range slices.Sorted(maps.Keys(c.Peers)) {
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: raft.ServerAddress(c.Peers[id])})
	}
	return conf
}

// toBootstrap asks the other servers until it knows whether the cluster is to be bootstrapped, or exists and is to be
// joined: then it returns the servers that may know its leader.
//
// All initial servers have to answer before the cluster is bootstrapped: one that does not answer may belong to a
// cluster that works. And all have to name the same initial servers: each writes them into its own log, and two that
// differ there would both report success. It waits until they do: an operator who corrects Peers on one server need
// not start the others again.
func (s *Server) toBootstrap(ctx context.Context) (join []Candidate, err error) {
	s.fresh.Store(true)
	if err := s.cfg.provable(); err != nil {
		return nil, err
	}
	others, logged, at := s.cfg.candidates(), "", mono.Time(0)
	for {
		found, err := s.survey(ctx, others)
		switch {
		case err != nil:
			return nil, err
		case found.bootstrapped:
			return others, nil
		case len(found.silent) == 0 && found.differs == nil && len(s.cfg.Peers) > 0:
			return nil, nil
		}
		if found.differs != nil && (found.differs.Error() != logged || mono.Now().Sub(at) >= time.Minute) {
			logged, at = found.differs.Error(), mono.Now()
			s.cfg.Logger.Error("the cluster is not bootstrapped yet", "error", found.differs)
		}
		s.cfg.Logger.Info("waiting for the other servers", "silent", found.silent)
		select {
		case <-time.After(joinRetry):
		case <-ctx.Done():
			err := fmt.Errorf("bootstrap or join a cluster: %w: waiting for %q", context.Cause(ctx), found.silent)
			return nil, errors.Join(err, found.differs)
		}
	}
}

// surveyed is what the other servers have answered.
type surveyed struct {
	silent       []string // those that did not answer
	bootstrapped bool     // one belongs to a cluster that works
	differs      error    // what initial servers they name, if not the same as this server
}

// survey asks each server what it is.
func (s *Server) survey(ctx context.Context, others []Candidate) (found surveyed, err error) {
	byName := map[string]Candidate{}
	for _, c := range others {
		byName[c.String()] = c
	}
	names := slices.Sorted(maps.Keys(byName))
	here := candidateTexts(s.cfg.initialServers().Servers)
	body, err := json.Marshal(bootstrapHello{here})
	if err != nil {
		return surveyed{}, err
	}
	answers := peer.All(ctx, names, func(ctx context.Context, name string) (helloAnswer, error) {
		return s.hello(ctx, byName[name], body)
	}, nil)
	var errs []error
	heard := map[string]bool{}
	for _, name := range names {
		a, ok := answers[name]
		if !ok {
			found.silent = append(found.silent, name)
			continue
		}
		found.bootstrapped = found.bootstrapped || a.Bootstrapped
		heard[byName[name].ID] = len(a.InitialServers) > 0
		errs = append(errs, differ(here, name, a))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.named)) {
		if !heard[string(id)] { // an answer is newer than what the server asked with
			errs = append(errs, differ(here, string(id), helloAnswer{InitialServers: s.named[id]}))
		}
	}
	found.differs = errors.Join(errs...)
	return found, nil
}

// differ is an error if both lists are known and are not the same.
func differ(here []string, name string, a helloAnswer) error {
	if len(here) == 0 || len(a.InitialServers) == 0 || slices.Equal(here, a.InitialServers) {
		return nil
	}
	err := fmt.Errorf("bootstrap the cluster: Peers must be the same on each server, and are %q here and %q on %s", here, a.InitialServers, name)
	if a.Logged {
		return fmt.Errorf("%w, in its raft log, whatever its Peers are now: if no server has committed anything, stop it, delete the directory raft in its Dir, and start it again", err)
	}
	return err
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
