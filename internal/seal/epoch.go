package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"sync/atomic"

	"example.com/keyring/internal/secret"
)

const (
	// An epoch ends after so many messages, or so many blocks of AES. The package's doc says what follows. Both counts
	// are estimates, and messages are under way when an epoch ends.
	epochMessages = 1 << 28
	epochBlocks   = 1 << 44

	// sampled is how many messages stand behind one whose N2 begins with two zero bytes.
	sampled = 1 << 16

	// cacheSize bounds the epochs a key keeps for opening, about 1 KiB each. Every
	// server that has been leader has left one, and every further 2^28 messages.
	cacheSize = 512
)

// An epoch is one value of N1, and the cipher that follows from it.
type epoch struct {
	header [headerLen]byte // version, key ID and N1: the first bytes of each of its envelopes
	aead   cipher.AEAD     // AES-256-GCM under Kx; draws and appends N2, and reads it back
	sealed atomic.Uint64   // messages, estimated
	blocks atomic.Uint64   // of AES, estimated
}

// open appends the plaintext of ciphertext, whose header is e's, to dst.
func (e *epoch) open(dst, ciphertext, aad []byte) ([]byte, error) {
	plaintext, err := e.aead.Open(dst, nil, ciphertext[headerLen:], aad)
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}

// spent counts a message of so many bytes, associated data included, that was sealed with the nonce n2, and reports whether
// e has had its share. N2 is uniform, so one message in 65,536 can stand for all of them, and the hot path has no counter
// that every core writes. At 2^28 messages the standard error is 1.6 %. A message of a MiB or more counts its own blocks:
// it takes long enough.
func (e *epoch) spent(n2 []byte, bytes int, limit uint64) bool {
	blocks := uint64(bytes)/aes.BlockSize + 4 // two for what is begun, one each for the lengths and the tag
	counts := n2[0]|n2[1] == 0
	spent := counts && e.sealed.Add(sampled) >= limit
	switch {
	case blocks >= sampled:
		return e.blocks.Add(blocks) >= epochBlocks || spent
	case counts:
		return e.blocks.Add(sampled*blocks) >= epochBlocks || spent
	}
	return spent
}

// nextEpoch replaces old, or nil at the start, and returns the epoch to seal under. Many
// may ask at once; one of them draws N1. A wiped key gets no other epoch.
func (k *Key) nextEpoch(old *epoch) (*epoch, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.epoch.Load(); e != old {
		if e == nil {
			return nil, ErrClosed
		}
		return e, nil
	}
	var header [headerLen]byte
	header[0] = version
	copy(header[1:], k.id[:])
	rand.Read(header[prefixLen:]) // never fails
	e, err := k.derive(&header)
	if err != nil {
		return nil, err
	}
	k.epoch.Store(e)
	return e, nil
}

// derive returns the epoch of the N1 in header. The caller holds mu, for reading at least.
func (k *Key) derive(header *[headerLen]byte) (*epoch, error) {
	if k.block == nil {
		return nil, ErrClosed
	}
	e := &epoch{header: *header}
	var err error
	if secret.Do(func() { e.aead, err = k.cipher(e.header[prefixLen:]) }); err != nil {
		return nil, err
	}
	return e, nil
}

// cipher returns the cipher of an epoch with this N1. The caller holds mu.
func (k *Key) cipher(n1 []byte) (cipher.AEAD, error) {
	var kx [32]byte
	defer clear(kx[:])
	subkey(&kx, k.block, k.mask, n1)
	block, err := aes.NewCipher(kx[:])
	if err != nil {
		return nil, err
	}
	// Opening goes through this type too: in FIPS 140-only mode there is no other.
	return cipher.NewGCMWithRandomNonce(block)
}

// remember puts e, under which a tag has verified, into the cache.
func (k *Key) remember(e *epoch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.cache.Load(); c != nil { // not wiped meanwhile
		k.cache.Store(c.with(e))
	}
}

// A cache has the epochs that Open has met, cacheSize at most. It is not changed once it
// is made. It is a hash table with open addressing and the first bytes of N1 for a hash:
// random already, and half of the slots are empty, so a look-up is a comparison or two.
type cache [2 * cacheSize]*epoch

// slot is where the look-up of an epoch begins.
func slot(header *[headerLen]byte) int {
	return int(header[prefixLen])<<8 | int(header[prefixLen+1])
}

// find returns the epoch with this header, or nil.
func (c *cache) find(header *[headerLen]byte) *epoch {
	for i := slot(header); ; i++ {
		e := c[i%len(c)]
		if e == nil || e.header == *header {
			return e
		}
	}
}

// with returns a copy of c that also has e. If c is full, the copy lacks the one before e
// in the order of slots: as good as any, since nobody can choose his N1 but a holder of the key.
func (c *cache) with(e *epoch) *cache {
	next := new(cache)
	next.put(e)
	room := cacheSize - 1
	for i := range c {
		old := c[(slot(&e.header)+i)%len(c)]
		if old != nil && old.header != e.header && room > 0 {
			next.put(old)
			room--
		}
	}
	return next
}

// put adds e, which is not there yet, to a cache under construction.
func (c *cache) put(e *epoch) {
	i := slot(&e.header)
	for c[i%len(c)] != nil {
		i++
	}
	c[i%len(c)] = e
}
