package scenarios_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// question is one of the leader's, to another server, that waits in the network.
type question struct {
	asked  chan struct{} // closed once there is one
	answer func()        // lets it go on
}

// holdQuestion has the next live question to a server wait, and keeps keys from servers that are to go
// without. What is asked after the answer fails with err, if that is not nil.
func holdQuestion(c *keyringtest.Cluster, leader, to *keyringtest.Server, err error, without ...raft.ServerID) question {
	asked, released := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
		switch {
		case e.Kind != "call":
		case strings.Contains(e.What, `"fetch":{`) && slices.Contains(without, e.Server.ID):
			return keyringtest.Reply{Err: errors.New("no key for it")}
		case e.Server == leader && strings.Contains(e.What, `"ask":{`):
			select {
			case <-released:
				return keyringtest.Reply{Err: err}
			default:
			}
			if e.To == to.ID {
				once.Do(func() { close(asked) })
				<-released
			}
		}
		return keyringtest.Reply{}
	})
	return question{asked, sync.OnceFunc(func() { close(released) })}
}

// TestActivationCountsTheVotersThatThereAre: the answers that are a majority when the question begins are
// none when it ends, for a server has become a voter meanwhile.
func TestActivationCountsTheVotersThatThereAre(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		holder := keyringtest.Follower(c)
		lacks := keyringtest.Besides(holder.ID)
		if lacks == leader.ID {
			lacks = keyringtest.Besides(lacks)
		}
		q := holdQuestion(c, leader, holder, nil, lacks, "s4")
		key := make(chan keyring.KeyID, 1)
		go func() {
			k, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
			if err != nil {
				t.Error(err)
			}
			key <- k.ID
		}()
		<-q.asked
		c.Add("s4")
		id := keyringtest.Ring(leader.FSM).Prepublished()[0].ID
		q.answer()
		time.Sleep(time.Minute) // virtual
		if got := keyringtest.StateOf(leader, keyring.KeyID(id)); got != keyring.StatePrepublished {
			t.Errorf("the key is %s, and 2 of 4 voters hold it: %v", got, keyringtest.Ring(leader.FSM).Key(id).Holders)
		}
		c.OnEvent(nil)
		if got := <-key; got != keyring.KeyID(id) {
			t.Errorf("%s became active, not %s", got, id)
		}
	})
}

// loseEverywhere has all servers start without a key's file, and returns who leads then.
func loseEverywhere(t *testing.T, c *keyringtest.Cluster, id keyring.KeyID) *keyringtest.Server {
	t.Helper()
	for _, s := range c.Servers {
		c.Stop(s)
		s.Disk.Unlink(nks.FileName(id))
	}
	for _, s := range c.Servers {
		c.Start(s)
	}
	return c.Leader()
}

// TestAnswersFromBeforeARestoreDecideNothing: it may have taken away, or brought back, what they speak of.
func TestAnswersFromBeforeARestoreDecideNothing(t *testing.T) {
	t.Parallel()
	for what, lost := range map[string]bool{"a key that all hold": false, "a key that nobody holds": true} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
				leader := keyringtest.Ready(t, c)
				key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Minute)})
				if err != nil {
					t.Fatal(err)
				}
				keyringtest.AwaitKeys(t, c)
				restore := keyringtest.TakeSnapshot(t, leader)
				if lost {
					leader = loseEverywhere(t, c, key.ID)
				}
				q := holdQuestion(c, leader, keyringtest.Follower(c), errors.New("no answer"), "s1", "s2", "s3")
				<-q.asked
				restore(leader)
				q.answer()
				time.Sleep(2 * time.Minute) // virtual
				if got := keyringtest.StateOf(leader, key.ID); got != keyring.StatePrepublished {
					t.Errorf("by answers from before the restore the key is %q", got)
				}
				c.OnEvent(nil)
				time.Sleep(2 * time.Minute) // virtual
				if got := keyringtest.StateOf(leader, key.ID); lost != (got == "") || !lost && got != keyring.StateActive {
					t.Errorf("asked again, the key is %q", got)
				}
			})
		})
	}
}
