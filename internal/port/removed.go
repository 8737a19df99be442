package port

import (
	"context"
	"slices"
	"sync"

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

// RemovedBy asks the other servers of raft's configuration whether this one is a member still, and returns those that say
// that it is not. It returns none unless they suffice.
func (p *Port) RemovedBy(ctx context.Context) []raft.ServerID {
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
