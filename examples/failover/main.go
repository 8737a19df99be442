// Failover shows that no ciphertext is lost when leaders die in the middle of a rotation.
//
//	go run ./examples/failover [-kills N]
//
// It starts three servers, each a process of its own, with mutual TLS between them, and a client that encrypts
// all the time. N times (3 by default) it rotates the key, kills the leader with SIGKILL in the middle of that,
// deletes the leader's directory, and puts a new server in its place. In the end every ciphertext must decrypt
// on every server. The exit status is 1 if one does not, or if anything else fails.
//
// server.go is a service that embeds a keyring. The other files test it: main.go is the course of events,
// cluster.go the processes, client.go the client, and timeline.go what the servers report.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

func main() {
	if os.Getenv(childEnv) != "" {
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, "failover server:", err)
			os.Exit(1)
		}
		return
	}
	kills := flag.Int("kills", 3, "how many leaders to kill")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *kills, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "failover:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

// run is the program. When it returns, no process and no file of it is left.
func run(ctx context.Context, kills int, stdout io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "failover-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	c := &cluster{timeline: newTimeline(stdout), dir: dir, ca: ca, processes: map[raft.ServerID]*process{}}
	defer func() { err = errors.Join(err, c.end()) }()
	if err := c.found(ctx); err != nil {
		return err
	}

	var cl client
	var running sync.WaitGroup
	working, stop := context.WithCancel(ctx)
	running.Go(func() { cl.run(working, c) })
	steps := []func(context.Context, *cluster) error{killWhilePrepublished, killOnceAsked}
	for i := 0; i < kills && err == nil; i++ {
		err = steps[i%len(steps)](ctx, c)
	}
	time.Sleep(time.Second / 4) // for the client to seal under the last key, too
	stop()
	running.Wait()
	if err != nil {
		return err
	}
	cl.summarize(c)
	return cl.check(ctx, c)
}

// lead is how long before its activation a key is prepublished. Real ones take a day, for
// the verifiers of tokens to learn of the key.
const lead = 2 * time.Second

// killWhilePrepublished kills the leader while a key waits for its time.
func killWhilePrepublished(ctx context.Context, c *cluster) error {
	leader := c.now().leader()
	asked := c.other(leader.ID)
	c.say(asked.id, "is asked for a new key, to become active in %v", lead)
	var key keyring.KeyID
	if err := asked.call(ctx, "Rotate", time.Now().Add(lead), &key); err != nil {
		return err
	}
	c.say(asked.id, "says that a majority holds key %s", short(key))
	if err := c.replace(ctx, leader.ID); err != nil {
		return err
	}
	return c.settle(ctx)
}

// killOnceAsked kills the leader as soon as another server has heard of the new key: who holds
// it is left to chance. The next leader goes on with it, or drops it if nobody does.
func killOnceAsked(ctx context.Context, c *cluster) error {
	leader := c.now().leader()
	asked := c.other(leader.ID)
	c.say(asked.id, "is asked for a new key, to become active at once")
	answered := make(chan error, 1)
	go func() { answered <- asked.call(ctx, "Rotate", time.Time{}, new(keyring.KeyID)) }()
	added := func(v views) bool { return len(v[asked.id].Keys) > len(leader.Keys) }
	if err := c.until(ctx, "there is a new key", added); err != nil {
		return err
	}
	if err := c.replace(ctx, leader.ID); err != nil {
		return err
	}
	if err := <-answered; err != nil {
		c.say(asked.id, "does not know whether the key was made: %v", err)
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	if c.now().leader().Active == leader.Active {
		c.say(asked.id, "sees that the key was dropped: no server has it any longer")
	}
	return nil
}
