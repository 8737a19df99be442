package lead

// How a key is made, and offered to the other servers.

import (
	"context"
	"crypto/rand"
	"math"
	"sync"

	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// Maker makes keys on the leader, for a rotation by hand or by schedule, and offers them to the other servers.
type Maker struct {
	*local.Server
	algorithm string // of the signing keys
	clocks    *local.Clocks
	report    func(meta.Hold) // takes in what a server holds that has taken up an offer
	offers    chan offer      // to be made
}

func newMaker(s *local.Server, algorithm string, c *local.Clocks, report func(meta.Hold)) *Maker {
	return &Maker{Server: s, algorithm: algorithm, clocks: c, report: report, offers: make(chan offer)}
}

// Create makes a key, its own file first: a crash here leaves an orphan file, never a key
// that nobody holds. Then it proposes the key together with its own hold, while the other
// servers already fetch it. What can be known to fail fails before that, and a context that ends later is not
// looked at.
func (m *Maker) Create(ctx context.Context, add meta.Add) (meta.KeyID, error) {
	secret, err := nks.Generate(m.algorithm)
	if err != nil {
		return meta.KeyID{}, err
	}
	defer secret.Wipe()
	public, err := secret.Public(m.algorithm)
	if err != nil {
		return meta.KeyID{}, err
	}
	id := NewKeyID()
	add.Key = meta.NewKey{
		ID: id, Algorithm: m.algorithm, Public: public,
		Check: secret.Check(id, m.algorithm), Created: m.clocks.TimeToWrite(ctx),
	}
	hold := meta.Hold{Server: string(m.ID), Keystore: m.Store.ID(), Gained: []meta.KeyID{id}}
	cmds := []meta.Command{{Add: &add}, {Hold: &hold}}
	_, err = m.FSM.Encode(ctx, cmds) // before there is a file that nobody needs
	if err == nil {
		_, err = m.FSM.Ring().Apply(math.MaxUint64, cmds)
	}
	if err != nil {
		return meta.KeyID{}, err
	}
	err = m.Store.Put(ctx, keystore.Key{ID: id, Algorithm: add.Key.Algorithm, Check: add.Key.Check, Created: add.Key.Created, Secret: secret})[0]
	if err != nil {
		m.Store.Discard(id)
		m.FSM.Notify() // the replicator sees to a KEK that does not answer
		return meta.KeyID{}, err
	}
	added := make(chan struct{})
	defer close(added)
	select {
	case m.offers <- offer{add.Key, added}:
	case <-ctx.Done(): // it is closed; or else the others have the key by replication
	}
	// There is a file now: nothing is asked again that could fail, as rotate has asked for what needs a newer build.
	return id, m.FSM.Propose(context.WithoutCancel(ctx), m.Raft, cmds)
}

// offer is a key that the leader is about to add, before the other servers hear of it from raft: an idle leader's
// followers learn of a commit two writes of their logs after it. A server that has taken it up counts as a holder
// once the key is added. One that does not answer has it by replication.
type offer struct {
	key   meta.NewKey
	added <-chan struct{} // closed when the key has been proposed
}

// Run makes offers until ctx ends.
func (m *Maker) Run(ctx context.Context) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		select {
		case o := <-m.offers:
			for _, server := range local.ServerIDs(m.Raft) {
				if server != string(m.ID) {
					calls.Go(func() { m.offer(ctx, server, o) })
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

func (m *Maker) offer(ctx context.Context, server string, o offer) {
	held, err := m.Peers.Offer(ctx, server, o.key, max(m.Barrier.Load(), m.FSM.ConfigurationAt()))
	if err != nil || len(held.Keys) == 0 {
		return
	}
	select {
	case <-o.added:
		m.report(meta.Hold{Server: server, Keystore: held.Keystore, Gained: []meta.KeyID{o.key.ID}})
	case <-ctx.Done():
	}
}

// NewKeyID draws a random UUID, version 4.
func NewKeyID() meta.KeyID {
	var id meta.KeyID
	rand.Read(id[:]) // never fails
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}
