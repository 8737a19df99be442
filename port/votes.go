package port

import (
	"context"
	"errors"
	"time"

	"example.com/keyring"
)

// How long after an error votes are given again: each time twice as long.
const (
	votesPause   = time.Second
	longestPause = time.Minute
)

// giveVotes gives votes to the servers that have joined, while this server leads, until ctx ends. Status and the log say why
// a server has none yet.
func giveVotes(ctx context.Context, keys *keyring.Keyring) {
	for pause := votesPause; ; {
		changed := keys.Changed()
		var retry <-chan time.Time
		err := keys.Leading()
		if err == nil {
			err = keys.PromoteServers(ctx)
		}
		if err == nil || errors.Is(err, keyring.ErrNotLeader) || errors.Is(err, keyring.ErrNotReady) {
			pause = votesPause
		} else { // trying has changed something by itself: that is no reason to try again
			changed, retry = nil, time.After(pause)
			pause = min(2*pause, longestPause)
		}
		select {
		case <-changed:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}
