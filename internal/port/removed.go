package port

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A server that was removed may never get the entry which says so: the others have closed its connections. It knows no
// leader then, as a server does whose cluster is down. So it asks.

// standing is what a server says of the one that asks: whether it was in the raft configuration when that index was committed.
type standing struct {
	commit uint64 // zero if the server does not say
	member bool
}

// maxUncommitted is how many entries of the log are looked at for a configuration that is not committed.
const maxUncommitted = 1024

// standingOf is what this server says of another one. It says nothing while the configuration is not known to be committed:
// it may never count. The configuration is read before the end of the log, which has it by then.
func (p *Port) standingOf(id raft.ServerID) standing {
	commit := p.raft.Load().CommitIndex()
	_, is := p.Member(id)
	if p.log == nil {
		return standing{}
	}
	last, err := p.log.LastIndex()
	if err != nil || last > commit+maxUncommitted {
		return standing{}
	}
	for i := commit + 1; i <= last; i++ {
		var entry raft.Log
		if err := p.log.GetLog(i, &entry); err != nil || entry.Type == raft.LogConfiguration {
			return standing{}
		}
	}
	return standing{commit, is}
}

// removedBy asks the other servers of raft's configuration whether this one is a member still, and returns those that say
// that it is not. It returns none unless they suffice.
func (p *Port) removedBy(ctx context.Context) []raft.ServerID {
	last, servers := p.raft.Load().LastIndex(), p.Members()
	said := map[raft.ServerID]standing{}
	var mu sync.Mutex // guards said
	var asking sync.WaitGroup
	for _, other := range servers {
		if other.ID == p.cfg.ID {
			continue
		}
		asking.Go(func() {
			a, err := p.Hello(ctx, Candidate{string(other.ID), string(other.Address)}, nil)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && a.Bootstrapped {
				said[other.ID] = standing{a.Commit, a.Member}
			}
		})
	}
	asking.Wait()
	return removedBy(p.cfg.ID, last, servers, said)
}

// removedBy returns the servers by which this one, whose log ends with the entry last, knows that it was removed. They are a
// majority of the voters of its own configuration, itself left aside, and each has committed more than is in this server's
// log, and then has a configuration without it. So one that lags behind does not count, and one that was cut off with a
// change of its own has not committed that. A server that has committed as much as they have, and has this one in its
// configuration, proves the contrary: it was added again.
func removedBy(self raft.ServerID, last uint64, servers []raft.Server, said map[raft.ServerID]standing) (by []raft.ServerID) {
	voters, newest := 0, uint64(0)
	for _, other := range servers {
		if other.ID == self || other.Suffrage != raft.Voter {
			continue
		}
		voters++
		if a := said[other.ID]; !a.member && a.commit > last {
			by = append(by, other.ID)
			newest = max(newest, a.commit)
		}
	}
	for _, a := range said {
		if a.member && a.commit >= newest {
			return nil
		}
	}
	if _, was := Find(servers, self); !was || len(by) <= voters/2 {
		return nil
	}
	slices.Sort(by)
	return by
}

// How long a server that knows no leader waits before it asks the others whether it is a member still. The wait grows to the
// second.
const (
	askRemoved     = 2 * time.Second
	askRemovedMost = time.Minute
)

// watchRemoval asks the other servers whether this one is a member still, while it knows no leader. What they say changes
// nothing but what this server says. A leader that makes itself known here proves the contrary. If it is a member, a leader
// that does may have another server of this ID in its place, and is told where this one is. It runs until Close.
func (p *Port) watchRemoval(ctx context.Context) {
	for pause := askRemoved; ; {
		changed := p.host.Changed()
		if p.Leader() != "" {
			p.noteRemoved(nil)
			pause = askRemoved
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, askRemovedMost)
		if len(p.AskWhetherRemoved(ctx)) > 0 {
			continue
		}
		if err := p.tellAddress(ctx); err != nil {
			p.cfg.Logger.Debug("this server hears from no leader", "error", err)
		}
	}
}

// AskWhetherRemoved returns the servers that say that this one was removed. It asks them if this server knows no leader.
func (p *Port) AskWhetherRemoved(ctx context.Context) []raft.ServerID {
	if p.Leader() != "" {
		return nil
	}
	if by := p.Removed(); len(by) > 0 {
		return by // that some of them do not answer later changes nothing
	}
	by := p.removedBy(ctx)
	if len(by) > 0 && p.Leader() == "" {
		p.noteRemoved(by)
	}
	return by
}

// Removed are the servers that have said that this one was removed; none if it is a member, for all that is known.
func (p *Port) Removed() []raft.ServerID {
	if by := p.removed.Load(); by != nil {
		return *by
	}
	return nil
}

func (p *Port) noteRemoved(by []raft.ServerID) {
	if (len(by) > 0) == (len(p.Removed()) > 0) {
		return
	}
	if len(by) > 0 {
		p.cfg.Logger.Warn("this server was removed from the cluster, say other members", "members", by)
	}
	p.removed.Store(&by)
	p.host.Notify()
}

// RemovedDetail says how this server knows that it was removed.
func RemovedDetail(by []raft.ServerID) string {
	return fmt.Sprintf("the members %q say that this server is not one of them", by)
}
