package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// A connection ends when a certificate of either end expires, and when the CAs, or the host's hooks, no longer vouch for the other end.
// There is no second handshake that would find out.

// ChainsEnd returns when the last of the chains ends, which is when the first of its certificates does.
func ChainsEnd(chains [][]*x509.Certificate) (last time.Time) {
	for _, chain := range chains {
		var end time.Time
		for i, cert := range chain {
			if i == 0 || cert.NotAfter.Before(end) {
				end = cert.NotAfter
			}
		}
		if end.After(last) {
			last = end
		}
	}
	return last
}

// endWith has the connection end when the chains of the other side do, or the certificate that this side has shown.
// A TLS configuration with a clock of its own may accept certificates that have expired by this server's clock:
// those connections are left to recheck.
func (c *Conn) endWith(chains [][]*x509.Certificate) {
	end := ChainsEnd(chains)
	if own, err := c.shown.leaf(); err == nil && own.NotAfter.Before(end) {
		end = own.NotAfter
	}
	c.life.Lock()
	defer c.life.Unlock()
	c.expires = end
	c.arm()
}

// arm has expire called at the end, unless the connection is closed, and reports whether the end is still to come.
// The caller holds life.
func (c *Conn) arm() bool {
	left := time.Until(c.expires)
	if left > 0 && !c.over {
		c.timer = time.AfterFunc(left, c.expire)
	}
	return left > 0
}

// stopTimer ends the wait of a connection that is closed.
func (c *Conn) stopTimer() {
	c.life.Lock()
	defer c.life.Unlock()
	c.over = true
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// expire cuts the connection off, unless the clock was set back meanwhile.
func (c *Conn) expire() {
	c.life.Lock()
	early := c.arm()
	c.life.Unlock()
	if !early {
		c.cutOff()
	}
}

func (c *Conn) cutOff() {
	if c.forget != nil {
		c.forget(c)
	}
	cutOff(c)
}

// recheck says why the certificates of the connection would not be accepted now. Nil is that they would.
func (c *Conn) recheck(base *tls.Config) error {
	roots, usage := base.RootCAs, x509.ExtKeyUsageServerAuth
	if !c.dialled {
		usage = x509.ExtKeyUsageClientAuth
		if base.ClientCAs != nil {
			roots = base.ClientCAs
		}
	}
	state := c.ConnectionState()
	var err error
	if state.VerifiedChains, err = verifyChain(base, roots, usage, state.PeerCertificates); err != nil {
		return err
	}
	at := time.Now()
	if base.Time != nil {
		at = base.Time()
	}
	if own, err := c.shown.leaf(); err == nil && at.After(own.NotAfter) {
		return errors.New("this side's certificate has expired")
	}
	return hostChecks(base, state)
}

// verifyChain verifies the certificates of the other side.
func verifyChain(base *tls.Config, roots *x509.CertPool, usage x509.ExtKeyUsage, certs []*x509.Certificate) ([][]*x509.Certificate, error) {
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	if base.Time != nil {
		o.CurrentTime = base.Time()
	}
	for _, c := range certs[1:] {
		o.Intermediates.AddCert(c)
	}
	chains, err := certs[0].Verify(o)
	if err != nil {
		return nil, &tls.CertificateVerificationError{UnverifiedCertificates: certs, Err: err}
	}
	return chains, nil
}

// Recheck cuts off the admitted connections whose certificates have expired, or are no longer vouched for by the CAs
// of the source, or are refused by its hooks.
func (p *Port) Recheck(source Source) error {
	base, err := Load(source)
	if err != nil {
		return err
	}
	p.mu.Lock()
	conns := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()
	for _, c := range conns {
		if err := c.recheck(base); err != nil {
			p.cut(c)
			p.refused(c, fmt.Errorf("%s: closed: %w", c.peer, err))
		}
	}
	return nil
}

// Recheck does the same to the connections that were dialled.
func (d *Dialer) Recheck() error {
	base, err := Load(d.TLS)
	if err != nil {
		return err
	}
	d.mu.Lock()
	conns := slices.Collect(maps.Keys(d.conns))
	d.mu.Unlock()
	for _, c := range conns {
		if c.recheck(base) != nil {
			c.cutOff()
		}
	}
	return nil
}

// keep notes a connection until it is closed.
func (d *Dialer) keep(c *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conns == nil {
		d.conns = map[*Conn]bool{}
	}
	d.dialled++
	d.conns[c], c.number = true, d.dialled
	c.forget = func(c *Conn) {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.conns, c)
	}
}
