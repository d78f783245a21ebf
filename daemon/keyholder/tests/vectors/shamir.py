"""Shamir shares over GF(2^8) by logarithm tables, to check src/gf256.rs against another implementation."""
exp=[0]*512;log=[0]*256;x=1
for i in range(255):
    exp[i]=x;log[x]=i
    x^=(x<<1)
    if x&0x100:x^=0x11b
for i in range(255,512):exp[i]=exp[i-255]
mul=lambda a,b:0 if a==0 or b==0 else exp[log[a]+log[b]]
secret=[i for i in range(32)]
coeff=[[0x1f]*32,[255-3*i for i in range(32)]]
for x in (1,2,5):
    print(x,bytes(secret[i]^mul(coeff[0][i],x)^mul(coeff[1][i],mul(x,x)) for i in range(32)).hex())
