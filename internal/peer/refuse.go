package peer

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Why a port refused a connection whose certificate it accepts.
var (
	errCut        = errors.New("cut off before its handshake was done: too many others")
	errDropped    = errors.New("no member, and the members changed during its handshake")
	errFull       = errors.New("too many connections")
	errGaveWay    = errors.New("closed for a newer connection of the same server, which has too many")
	errNoListener = errors.New("nobody listens for this protocol here")
)

// Of the refusals within tellEvery, tellEach are told one by one, and of the rest only their number.
const (
	tellEach  = 10
	tellEvery = time.Second
)

// refusalLog reports refusals to the host, and keeps a flood of connections from becoming a flood of log lines.
type refusalLog struct {
	tell func(net.Addr, error)
	addr net.Addr        // the port's
	done <-chan struct{} // closed at the port's end
	wg   *sync.WaitGroup // the port's, of which the callers are part

	mu       sync.Mutex // guards below
	counting bool       // a second has begun
	told     int        // one by one in that second
	more     int        // that were only counted
}

// note reports one refusal, or counts it.
func (t *refusalLog) note(remote net.Addr, err error) {
	if t.count() {
		t.tell(remote, err)
	}
}

// count reports whether a refusal is to be reported by itself. The first refusal begins a second.
func (t *refusalLog) count() bool {
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

// sum waits for the end of the second, and reports how many more refusals there were.
func (t *refusalLog) sum() {
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
