package peer

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Why a port refused a connection that its checks had nothing against.
var (
	errCut        = errors.New("cut off before its handshake was done: too many others")
	errDropped    = errors.New("no member, and the members changed during its handshake")
	errFull       = errors.New("too many connections")
	errGaveWay    = errors.New("closed for a newer connection of the same server, which has too many")
	errNoListener = errors.New("nobody listens for this protocol here")
)

// Of the refusals of one second, so many are told one by one, and then how many more there were.
const (
	tellEach  = 10
	tellEvery = time.Second
)

// teller tells of refusals, and keeps a flood of connections from becoming one of log lines.
type teller struct {
	tell func(net.Addr, error)
	addr net.Addr        // the port's
	done <-chan struct{} // closed at the port's end
	wg   *sync.WaitGroup // the port's, of which the callers are part

	mu       sync.Mutex // guards below
	counting bool       // a second has begun
	told     int        // in that second
	more     int
}

// note tells of one refusal, or counts it.
func (t *teller) note(remote net.Addr, err error) {
	if t.count() {
		t.tell(remote, err)
	}
}

// count reports whether a refusal is to be told by itself. The first begins a second.
func (t *teller) count() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.counting {
		t.counting = true
		t.wg.Go(t.sum)
	}
	if t.told == tellEach {
		t.more++
		return false
	}
	t.told++
	return true
}

// sum ends the second that has begun.
func (t *teller) sum() {
	end := time.NewTimer(tellEvery)
	defer end.Stop()
	select {
	case <-end.C:
	case <-t.done:
	}
	t.mu.Lock()
	more := t.more
	t.counting, t.told, t.more = false, 0, 0
	t.mu.Unlock()
	if more > 0 {
		t.tell(t.addr, fmt.Errorf("and %d more", more))
	}
}
