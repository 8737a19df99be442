package port

import (
	"context"
	"net"
)

// DialWith has a Port make its connections with dial.
func DialWith(c *Config, dial func(ctx context.Context, network, addr string) (net.Conn, error)) {
	c.dial = dial
}
